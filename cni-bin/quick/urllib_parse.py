"""urllib.parse for the self-contained plugin: pathlib imports it for Path.as_uri, which the plugin does not call."""


def quote_from_bytes(*args, **kwargs):
    import _whole_urllib_parse

    return _whole_urllib_parse.quote_from_bytes(*args, **kwargs)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    import _whole_urllib_parse

    return getattr(_whole_urllib_parse, name)
