"""Where Twisted looks for plugins of mailgate: here, and in folders `mailgate/plugins` elsewhere on Python's path."""

from twisted.plugin import pluginPackagePaths

__path__.extend(pluginPackagePaths(__name__))
__all__: list[str] = []
