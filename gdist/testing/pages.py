"""What tests of pages need: a strict reader, the rule that a page needs nothing but itself, hostile names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "hr", "input", "wbr", "source"}
HOSTILE = "</td><script>alert(1)</script>&lt;\u202e\x00'\"{{7*7}}"
SHOWN = HOSTILE.replace("\u202e", "\\u202e").replace("\x00", "\\x00")


@dataclass
class Page(HTMLParser):
    """A page read as strictly as it can be: every element that opens closes, in order."""

    open: list[str] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Takes note of an element that opens."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Takes note of an element without content."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Checks that the innermost element closes."""
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        """Takes note of text."""
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All text that a reader sees, blanks joined."""
        return re.sub(r"\s+", " ", "".join(self.texts))


def read(text: str) -> Page:
    """The page, when every element that opens closes in order."""
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def assert_whole_in_itself(text: str, page: Page) -> None:
    """That a page has no script and no address, and forbids both."""
    names = {tag for tag, _ in page.tags}
    assert not names & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "image",
        "use",
        "base",
        "form",
        "a",
    }
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "xlink:href")}
    assert "@import" not in text and "url(" not in text and "http" not in text.replace("http-equiv", "")
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
