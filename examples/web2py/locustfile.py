"""What each of the many users does: look about, add a customer, buy; and insist on seeing what he has just written."""

from __future__ import annotations

import html
import re
from itertools import count
from typing import Any

from locust import HttpUser, between, task

#: Not each other's: a name tells whether the page is the one that was just written.
_numbers = count(1)
_BUY = re.compile(r'action="([^"]*/buy/[^"]*)"')
_ONCE = re.compile(r'name="once" value="([^"]+)"')
_FORM = re.compile(r'<input name="(_form\w+)" type="hidden" value="([^"]*)"')
#: Two that `setup/fill` makes, with the same password.
NAMES, PASSWORD = ("ada", "bob"), "pipeline"


class Customer(HttpUser):
    """Somebody with a browser of his own."""

    wait_time = between(1, 2)

    def on_start(self) -> None:
        """Log in, and add a customer to buy for."""
        self.number = next(_numbers)
        name = NAMES[self.number % len(NAMES)]
        with self._submit("user/login", "log in", email=f"{name}@example.com", password=PASSWORD) as answer:
            self._must(answer, "Log out")
        self._add()

    @task(3)
    def look(self) -> None:
        """The start page, of all shards."""
        self.client.get("/default/index", name="index")

    @task(2)
    def leaf(self) -> None:
        """A page of customers, sorted over all shards."""
        self.client.get(f"/default/customers?page={self.number % 4}", name="customers")

    @task(1)
    def add(self) -> None:
        """A new customer."""
        self._add()

    @task(4)
    def buy(self) -> None:
        """Buy; the purchase must be in the customer's list at once, and on the next page too."""
        page = self.client.get(self.page, name="customer").text
        action, once = _BUY.search(page), _ONCE.search(page)
        if not action or not once:
            return  # the answer was no page: it is counted as an error
        quantity = self.bought = self.bought + 1
        fields = {"item": "Star chart", "qty": quantity, "once": once.group(1)}
        with self._post(html.unescape(action.group(1)), fields, "buy") as answer:
            self._must(answer, f"<td>{quantity}</td>")
        with self.client.get(self.page, name="customer (own purchase)", catch_response=True) as answer:
            self._must(answer, f"<td>{quantity}</td>")

    def _add(self) -> None:
        name = f"Customer {self.number}-{next(_numbers)}"
        with self._submit("customer_new", "add a customer", name=name) as answer:
            self._must(answer, f"<h1>{name}</h1>")
            self.bought = 0
            self.page = answer.url[answer.url.index("/default/") :]

    def _submit(self, path: str, label: str, /, **fields: str) -> Any:
        """Open a form and send it."""
        page = self.client.get(f"/default/{path}", name=f"{label} (form)").text
        return self._post(f"/default/{path}", {**dict(_FORM.findall(page)), **fields}, label)

    def _post(self, path: str, fields: dict[str, Any], label: str) -> Any:
        return self.client.post(path.removeprefix("/shop"), fields, name=label, catch_response=True)

    def _must(self, answer: Any, text: str) -> None:
        if answer.status_code == 200 and text not in answer.text:
            answer.failure(f"stale: {text!r} is not there")
