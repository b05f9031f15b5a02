"""Personal data and secrets in texts: where they are, and of which kind."""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

Span = tuple[int, int]
_KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
_BASE64 = re.compile(r"[A-Za-z0-9+/=]{16,}")
_LEAST_KEY, _MOST_KEY = 64, 20_000
"""Characters of base64 that a key has at least, and of a whole block at most."""
_EMAIL = re.compile(r"(?<![\w.+%-])([\w.+%-]{1,64})@((?:[A-Za-z0-9-]{1,63}\.){1,8}([A-Za-z]{2,24}))(?![\w-]|\.\w)")
_NOBODY = ("git", "example", "user", "username", "name", "foo", "bar")
"""Before the @ of addresses that are nobody's."""
_ESCAPED = "nrtfvb"
"""Letters that make an escape behind a backslash."""
_RESERVED = re.compile(r"(?:^|\.)(?:example|test|invalid|localhost|local)$|(?:^|\.)example\.(?:com|org|net|edu)$")
_IPV4 = re.compile(r"(?<![\w.+-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\w)")
_LEAST_PART = 50
"""A version or a section has no number of that size; one in 700 addresses has none."""
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_INTERNATIONAL = re.compile(r"(?<![\w+])\+[1-9]\d?[\d ().-]{6,22}\d(?!\w)")
_DECIMAL = re.compile(r"\+\d+\.\d+")
_TOKENS = re.compile(
    r"(?<![\w-])(?:"
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON web tokens
    r"|sk-[\w-]*T3BlbkFJ[\w-]+|sk-ant-[\w-]{32,}"  # OpenAI, Anthropic
    r"|AIza[\w-]{35}|hf_[A-Za-z0-9]{34}|github_pat_\w{60,}|npm_[A-Za-z0-9]{36}"  # Google, Hugging Face, GitHub, npm
    r")(?![\w-])"
)
"""Those that detect-secrets has no pattern for, or one that takes too long for hostile texts."""
_DETECTORS = (
    "aws:AWSKeyDetector", "azure_storage_key:AzureStorageKeyDetector", "basic_auth:BasicAuthDetector",
    "discord:DiscordBotTokenDetector", "github_token:GitHubTokenDetector", "gitlab_token:GitLabTokenDetector",
    "mailchimp:MailchimpDetector", "pypi_token:PypiTokenDetector", "sendgrid:SendGridDetector", "slack:SlackDetector",
    "square_oauth:SquareOAuthDetector", "stripe:StripeDetector", "telegram_token:TelegramBotTokenDetector",
    "twilio:TwilioKeyDetector",
)  # fmt: skip
"""Of detect-secrets: tokens of one form. What goes by entropy or by names (`password`) finds much that is none."""
_VALUE_IN_GROUP = ("aws", "basic_auth")
"""Detectors whose patterns have the value in a group, among what tells of it; the groups of others are parts of it."""


def private_keys(text: str) -> Iterator[Span]:
    """Blocks of private keys in PEM form that hold a key, also where the end is cut off."""
    place = 0
    while found := _KEY_BEGIN.search(text, place):
        end = _KEY_END.search(text, found.end(), found.end() + _MOST_KEY)
        place = end.end() if end else _after_base64(text, found.end())
        if sum(map(len, _BASE64.findall(text[found.end() : place]))) >= _LEAST_KEY:
            yield found.start(), place


def _after_base64(text: str, place: int) -> int:
    """The end of the lines of base64 that begin at a place."""
    return re.compile(r"(?:(?:\s|\\n)*[A-Za-z0-9+/=]{16,})*").match(text, place).end()  # type: ignore[union-attr]


def secrets(text: str) -> Iterator[Span]:
    """Tokens and keys of services, and passwords in URLs."""
    for pattern, group in (*_patterns(), (_TOKENS, 0)):
        for found in pattern.finditer(text):
            yield found.span(group)


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], int], ...]:
    """Patterns of detect-secrets, and the group of each that is the secret."""
    found: list[tuple[re.Pattern[str], int]] = []
    for where in _DETECTORS:
        module, _, name = where.partition(":")
        for pattern in getattr(import_module(f"detect_secrets.plugins.{module}"), name).denylist:
            found.append((pattern, min(pattern.groups, 1) if module in _VALUE_IN_GROUP else 0))
    return tuple(found)


def emails(text: str) -> Iterator[Span]:
    """Addresses of people; not those at domains that are reserved for examples, nor git@host."""
    for found in _EMAIL.finditer(text):
        begin, end = found.span()
        if text[begin - 1 : begin] == "\\" and text[begin] in _ESCAPED and text[begin + 1] != "@":
            begin += 1  # the rest of an escape such as \n, in source code
        if text[begin : found.end(1)].lower() not in _NOBODY and not _RESERVED.search(found[2].lower()):
            yield begin, end


def addresses(text: str) -> Iterator[Span]:
    """IP addresses of the public internet; private, reserved and documentation ranges are nobody's."""
    for found in _IPV4.finditer(text):
        if _is_public(found[0]) and max(map(int, found[0].split("."))) >= _LEAST_PART:
            yield found.span()
    yield from (found.span() for found in _IPV6.finditer(text) if _is_public(found[0]))


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


def phones(text: str, region: str) -> Iterator[Span]:
    """Valid telephone numbers: those that begin with + and a country, and with a region's code (`US`) also those as
    they are written there."""
    import phonenumbers

    if region:
        # Its own limit of candidates, 65,535, would leave the numbers behind a long table where they are.
        for found in phonenumbers.PhoneNumberMatcher(text, region, max_tries=len(text)):
            yield found.start, found.end
        return
    for candidate in filter(lambda one: not _DECIMAL.fullmatch(one[0]), _INTERNATIONAL.finditer(text)):
        for found in phonenumbers.PhoneNumberMatcher(candidate[0], None):
            yield candidate.start() + found.start, candidate.start() + found.end


def is_region(region: str) -> bool:
    """Whether telephone numbers of a region (`US`, `DE`) are known."""
    import phonenumbers

    return region in phonenumbers.SUPPORTED_REGIONS


FINDERS: dict[str, Callable[[str, str], Iterator[Span]]] = {
    "private-key": lambda text, _: private_keys(text),
    "secret": lambda text, _: secrets(text),
    "email": lambda text, _: emails(text),
    "ip": lambda text, _: addresses(text),
    "phone": phones,
}
"""By kind, in order of precedence."""


def find_private(text: str, kinds: Any, region: str = "") -> list[tuple[int, int, str]]:
    """Where a text holds personal data or secrets: begin, end and kind, in order and without overlap.

    Args:
        text: any text.
        kinds: of `FINDERS`; where two overlap the earlier kind stands.
        region: of telephone numbers, see `phones`.
    """
    taken: list[tuple[int, int, str]] = []
    for kind in (kind for kind in FINDERS if kind in kinds):
        for begin, end in _merged(sorted(FINDERS[kind](text, region))):
            i = bisect_left(taken, (begin, end, kind))
            if (i == 0 or taken[i - 1][1] <= begin) and (i == len(taken) or end <= taken[i][0]):
                insort(taken, (begin, end, kind))
    return taken


def _merged(spans: list[Span]) -> list[Span]:
    """Spans in order, those that overlap as one."""
    found: list[Span] = []
    for begin, end in spans:
        if found and begin < found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found
