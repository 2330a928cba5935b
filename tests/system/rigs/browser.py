# SPDX-License-Identifier: Apache-2.0
"""A browser without JavaScript: it follows redirects, and fills in and sends the forms of sign-in and consent pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from typing import Final

import httpx

CALLBACK: Final = "/callback"
STEPS: Final = 20

Script = Callable[[httpx.Client, httpx.URL], httpx.URL | None]
"""What the JavaScript of a page does: it may send requests, and returns the next address, or None."""


class _Forms(HTMLParser):
    """The forms of a page that are sent by POST: where each goes, its fields, and the names of its buttons."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], set[str]]] = []
        self._is_open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        name = given.get("name")
        if tag == "form":
            self._is_open = given.get("method", "").lower() == "post"
            if self._is_open:
                self.found.append((given.get("action", ""), {}, set()))
        elif self._is_open and name and (tag == "button" or given.get("type") == "submit"):
            self.found[-1][2].add(name)
        elif self._is_open and name and tag == "input":
            self.found[-1][1][name] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        self._is_open = self._is_open and tag != "form"


def browse(
    url: str, answers: Mapping[str, str], script: Script = lambda client, page: None
) -> httpx.URL:
    """Open a page and answer what it and the pages after it ask, until a redirect to /callback, or nothing more is asked.

    `answers` are the fields that the person fills in, and the buttons that they press. Returns the last address; /callback
    isn't opened.
    """
    with httpx.Client(trust_env=False) as client:
        request = client.build_request("GET", url)
        for _ in range(STEPS):
            page = client.send(request)
            assert not page.is_error, f"{page.status_code} at {page.url.path}: {page.text[:500]}"
            following = script(client, page.url)
            form = _answered(page, answers)
            if page.next_request is not None:
                request = page.next_request
                if request.url.path == CALLBACK:
                    return request.url
            elif following is not None:
                request = client.build_request("GET", following)
            elif form is not None:
                request = client.build_request("POST", form[0], data=form[1])
            else:
                return page.url
    raise AssertionError(f"the sign-in never ended: {request.url}")


def _answered(
    page: httpx.Response, answers: Mapping[str, str]
) -> tuple[httpx.URL, dict[str, str]] | None:
    """The first form with something to answer: where it goes, and what it holds then."""
    for action, fields, buttons in _Forms(page.text).found:
        asked = (fields.keys() | buttons) & answers.keys()
        if asked:
            return page.url.join(action), fields | {name: answers[name] for name in asked}
    return None
