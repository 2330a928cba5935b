# SPDX-License-Identifier: Apache-2.0
"""A browser without JavaScript: it follows redirects, and fills in and sends the forms of sign-in and consent pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from typing import Final

import httpx

STEPS: Final = 20

Elsewhere = Callable[[httpx.Client, httpx.URL], httpx.URL | None]


class _Forms(HTMLParser):
    """The forms of a page that are sent by POST: where each goes, and its members. Buttons are members, too."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str, bool]]]] = []
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._open = values.get("method", "").lower() == "post"
            if self._open:
                self.found.append((values.get("action", ""), []))
        elif self._open and tag in ("input", "button") and values.get("name"):
            is_button = tag == "button" or values.get("type") == "submit"
            self.found[-1][1].append((values["name"], values.get("value", ""), is_button))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = False


def browse(
    url: str, answers: Mapping[str, str], *, until: str = "", elsewhere: Elsewhere | None = None
) -> str:
    """Open a page, answer every form on the way, and return the address that begins with `until`, unopened.

    `answers` are the fields that the person fills in, and the buttons that they press. Without `until`, it ends at the first
    page that asks nothing more. `elsewhere` does what a page's JavaScript would do: it returns the next address, or None.
    """
    with httpx.Client(trust_env=False) as client:
        request = client.build_request("GET", url)
        for _ in range(STEPS):
            answer = client.send(request)
            assert not answer.is_error, f"{answer.status_code} at {request.url}: {answer.text}"
            following = elsewhere and elsewhere(client, answer.url)
            if answer.next_request is not None:
                request = answer.next_request
                if until and str(request.url).startswith(until):
                    return str(request.url)
            elif following:
                request = client.build_request("GET", following)
            else:
                form = _answered(answer, answers)
                if form is None:
                    assert not until, f"nothing to answer at {answer.url}: {answer.text}"
                    return str(answer.url)
                action, data = form
                request = client.build_request("POST", action, data=data)
    raise AssertionError(f"the sign-in never ended: {request.url}")


def _answered(
    page: httpx.Response, answers: Mapping[str, str]
) -> tuple[httpx.URL, dict[str, str]] | None:
    """The first form of a page in which there is something to answer."""
    for action, members in _Forms(page.text).found:
        if any(name in answers for name, _, _ in members):
            data = {name: value for name, value, is_button in members if not is_button}
            data |= {name: answers[name] for name, _, _ in members if name in answers}
            return page.url.join(action), data
    return None
