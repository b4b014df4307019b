"""What makes `twistd mailgate` exist: one ServiceMaker.

twistd imports every plugin file whenever it starts, for any service, so this one imports nothing of mailgate: the maker
names the module, and twistd imports it when it is asked for.
"""

from twisted.application.service import ServiceMaker

mailgate = ServiceMaker(
    "mailgate",
    "mailgate.tap",
    "Receive mail over SMTP and keep it in PostgreSQL.",
    "mailgate",
)
