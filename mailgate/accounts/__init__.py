"""Who may send through us: passwords, the check of them through a twisted.cred Portal, and bans of those who guess."""
