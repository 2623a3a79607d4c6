"""Where a user's session token rests between his requests: in web2py's session, or in a cookie.

web2py stores a session that is kept in a database *before* it commits, when the positions of the request's ops are not
known yet; then the token, which is signed, goes into a cookie of its own.
"""

from __future__ import annotations

from typing import Any

from gluon import current

#: The key in web2py's session, and the cookie's name after the application's.
KEY = "_pipeline"


def recalled() -> str | None:
    """Return the token's text as the user's last request left it."""
    if _in_cookie():
        morsel = current.request.cookies.get(_cookie())
        return morsel.value if morsel is not None else None
    text: str | None = dict.get(current.session, KEY)
    return text


def keep(text: str | None) -> None:
    """Let the user's next request find the text. None: nothing has changed, so the session need not be stored."""
    if text is None or current.session._forget:
        return
    if _in_cookie():
        _bake(text)
    elif text:
        current.session[KEY] = text
    else:
        current.session.pop(KEY, None)


def _in_cookie() -> bool:
    return bool(current.response.session_storage_type == "db")


def _cookie() -> str:
    return f"{KEY}_{current.request.application}".lstrip("_")


def _bake(text: str) -> None:
    cookies: Any = current.response.cookies
    name = _cookie()
    cookies[name] = text
    cookies[name]["path"] = "/"
    cookies[name]["httponly"] = True
    cookies[name]["samesite"] = "Lax"
    if current.request.is_https:
        cookies[name]["secure"] = True
    if not text:
        cookies[name]["max-age"] = 0
