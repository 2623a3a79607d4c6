"""What a browser does with an HTML form: it reads what the fields hold, and sends them with files."""

from __future__ import annotations

from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

_BOUNDARY = "----pipeline-test-boundary"


class _Forms(HTMLParser):
    """The fields of each form of a page, with the values that they show."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[dict[str, Any]] = [{}]
        self._area: str | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        name, value = found.get("name"), found.get("value") or ""
        if tag == "form":
            self.forms.append({})
        elif tag == "textarea" and name:
            self._area, self.forms[-1][name] = name, ""
        elif tag == "input" and name:
            kind = found.get("type")
            if kind in ("submit", "file") or (kind == "checkbox" and "checked" not in found):
                return
            self.forms[-1][name] = value

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._area = None

    def handle_data(self, text: str) -> None:
        if self._area:
            self.forms[-1][self._area] += text


def form_fields(page: str, with_field: str | None) -> dict[str, Any]:
    """Return the fields of the form that shows a field, else of the last one with a key of web2py's."""
    parser = _Forms()
    parser.feed(page)
    keyed = [form for form in parser.forms if "_formkey" in form or with_field in form]
    assert keyed, page
    return next((form for form in keyed if with_field in form), keyed[-1])


def multipart(fields: Mapping[str, Any], files: Mapping[str, tuple[str, bytes]]) -> tuple[bytes, str]:
    """Return the body of a form with files, and its content type."""
    parts = [(f'name="{name}"', str(value).encode()) for name, value in fields.items()]
    parts += [(f'name="{name}"; filename="{file}"', content) for name, (file, content) in files.items()]
    body = b"".join(
        f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    )
    return body + f"--{_BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={_BOUNDARY}"
