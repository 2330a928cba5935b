# SPDX-License-Identifier: Apache-2.0
"""What a grant allows of a tool: RFC 9396 objects of one type, with constraints on its arguments (DESIGN section 5, *Details*).

    {"type": "urn:agent-identity:tool", "tools": ["book_flight"], "resources": ["https://api.travel.example"],
     "arguments": {"amount": {"maximum": 500}, "currency": {"const": "USD"}}}

The vocabulary is closed: an object has four members, a constraint five keywords, and any other one is refused. Without `tools` or
`resources`, an object is about any that scope and audience allow; empty lists and empty constraints are refused. A call is allowed
if one object allows all of it. A child is narrower if each of its objects is covered by one object of its parent.

Values are compared in their RFC 8785 form: 1 equals 1.0, and 1 doesn't equal true, as in a digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeGuard

import orjson

from agent_identity import canonical
from agent_identity.delegation.claims import Claims
from agent_identity.errors import (
    ConfigurationError,
    DeniedError,
    InvalidAssertionError,
    VerificationError,
)
from agent_identity.values import TOOL_DETAILS

if TYPE_CHECKING:
    from agent_identity.values import JSON

_DETAIL: Final = frozenset({"type", "tools", "resources", "arguments"})
_LARGEST: Final = 64
"""The maximum number of objects in a grant, and of arguments in an object."""

Number: TypeAlias = "int | float"


class Constraint(NamedTuple):
    """The constraints on one argument, which all must hold. Values are RFC 8785 bytes."""

    const: bytes | None = None
    enum: frozenset[bytes] | None = None
    minimum: Number | None = None
    maximum: Number | None = None
    prefix: str | None = None

    def allows(self, value: JSON) -> bool:
        """Whether an argument may have this value."""
        return self._takes(canonical.encode(value), value)

    def covers(self, child: Constraint) -> bool:
        """Whether `child` is provably no wider, by its keywords."""
        named = child.named()
        if named is not None:
            # A child with listed values is narrower exactly if each of them is allowed here.
            values = [(text, orjson.loads(text)) for text in named]
            return all(self._takes(*value) for value in values if child._takes(*value))
        return (
            self.const is None
            and self.enum is None
            and (self.minimum is None or _is_within(child.minimum, self.minimum, None))
            and (self.maximum is None or _is_within(child.maximum, None, self.maximum))
            and (self.prefix is None or (child.prefix or "").startswith(self.prefix))
        )

    def named(self) -> frozenset[bytes] | None:
        """The listed values (`const`, `enum`); None where there is no list."""
        if self.const is not None:
            return frozenset({self.const})
        return self.enum

    def _takes(self, text: bytes, value: JSON) -> bool:
        return (
            (self.const is None or text == self.const)
            and (self.enum is None or text in self.enum)
            and ((self.minimum is None and self.maximum is None) or self._is_in_range(value))
            and (self.prefix is None or (isinstance(value, str) and value.startswith(self.prefix)))
        )

    def _is_in_range(self, value: JSON) -> bool:
        return _is_number(value) and _is_within(value, self.minimum, self.maximum)


class Detail(NamedTuple):
    """One object. None for `tools` or `resources` means any."""

    tools: frozenset[str] | None
    resources: frozenset[str] | None
    arguments: Mapping[str, Constraint]

    @property
    def sees_arguments(self) -> bool:
        """Whether checking it requires the tool and its arguments."""
        return self.tools is not None or bool(self.arguments)

    def reaches(self, resource: str) -> bool:
        return self.resources is None or resource in self.resources

    def allows(self, tool: str, resource: str, arguments: Mapping[str, JSON]) -> bool:
        """Whether it allows the whole call. An argument with a constraint must be present."""
        return (
            (self.tools is None or tool in self.tools)
            and self.reaches(resource)
            and all(
                name in arguments and rule.allows(arguments[name])
                for name, rule in self.arguments.items()
            )
        )

    def covers(self, child: Detail) -> bool:
        """Whether `child` is no wider: it has every limit of this object, at least as narrow."""
        return (
            _is_subset(child.tools, self.tools)
            and _is_subset(child.resources, self.resources)
            and all(
                name in child.arguments and rule.covers(child.arguments[name])
                for name, rule in self.arguments.items()
            )
        )


class Details:
    """The authorization details of a grant or session. `claim` is their form in a grant."""

    __slots__ = ("_objects", "claim")

    def __init__(self, objects: Iterable[tuple[Detail, dict[str, JSON]]]) -> None:
        pairs = tuple(objects)
        self._objects = tuple(detail for detail, _ in pairs)
        self.claim: tuple[dict[str, JSON], ...] = tuple(member for _, member in pairs)

    @property
    def sees_arguments(self) -> bool:
        """Whether checking any object requires the tool and its arguments."""
        return any(detail.sees_arguments for detail in self._objects)

    def reaches(self, resource: str) -> bool:
        """Whether any object is about that resource."""
        return any(detail.reaches(resource) for detail in self._objects)

    def allows(self, tool: str, resource: str, arguments: Mapping[str, JSON]) -> bool:
        """Whether one object allows the whole call."""
        return any(detail.allows(tool, resource, arguments) for detail in self._objects)

    def allows_unseen(self, resource: str, tool: str | None, *, lenient: bool) -> bool:
        """Whether an object allows a call whose arguments aren't visible; `lenient` leaves tool and arguments unchecked.

        Even then a `tool` that the caller names has to be one that it may call.
        """
        return any(
            detail.reaches(resource)
            and (
                not detail.sees_arguments
                or (lenient and (tool is None or detail.tools is None or tool in detail.tools))
            )
            for detail in self._objects
        )

    def covers(self, child: Details | None) -> bool:
        """Whether each object of `child` is covered by one of these. A child without details is wider."""
        return child is not None and all(
            any(above.covers(detail) for above in self._objects)
            for detail in child._objects  # noqa: SLF001 - of the same class
        )

    def for_resources(self, resources: Iterable[str]) -> Details | None:
        """The objects about any of these resources, so that a grant has no others; None where there are none."""
        wanted = tuple(resources)
        kept = [
            (detail, member)
            for detail, member in zip(self._objects, self.claim, strict=True)
            if any(detail.reaches(resource) for resource in wanted)
        ]
        return Details(kept) if kept else None

    def split_by_resource(self, resources: Iterable[str]) -> Details:
        """The details of a grant for these resources, with one object for each resource that an object is about.

        Raises:
            ConfigurationError: `authorization_details`, there are too many objects.
        """
        return details_from(
            {**member, "resources": [resource]}
            for resource in sorted(resources)
            for detail, member in zip(self._objects, self.claim, strict=True)
            if detail.reaches(resource)
        )

    def __len__(self) -> int:
        return len(self._objects)


def read_details(value: JSON, error: type[VerificationError] = InvalidAssertionError) -> Details:
    """Read the claim `authorization_details`.

    Raises:
        InvalidAssertionError: `detail_type_unknown`, `constraint_unknown`, `claim_unknown` or `claim_malformed`.
    """
    if not isinstance(value, list) or not 0 < len(value) <= _LARGEST:
        raise error(
            "claim_malformed", f"authorization_details are a list of 1 to {_LARGEST} objects"
        )
    objects: list[tuple[Detail, dict[str, JSON]]] = []
    for detail in value:
        if not isinstance(detail, dict):
            raise error("claim_malformed", "authorization_details are a list of objects")
        objects.append((_detail(Claims(detail, error), error), detail))
    return Details(objects)


def details_from(objects: Iterable[Mapping[str, JSON]], *, whose: str = "") -> Details:
    """Read authorization details from code or configuration. `whose` is for the error message.

    Raises:
        ConfigurationError: `authorization_details`, with what is wrong.
    """
    try:
        if isinstance(objects, str | Mapping):
            raise VerificationError(
                "claim_malformed", "authorization_details are a list of objects"
            )
        claim = orjson.loads(canonical.encode([dict(each) for each in objects]))
        return read_details(claim, VerificationError)
    except (VerificationError, DeniedError) as error:
        reason = str(error)
    except (TypeError, ValueError):
        reason = "they aren't JSON objects"
    raise ConfigurationError(
        "authorization_details",
        f"the authorization_details{whose} can't be used: {reason}",
        remedy=f'write [{{type = "{TOOL_DETAILS}", tools = […], arguments = {{amount = {{maximum = 500}}}}}}]; '
        "the keywords are const, enum, minimum, maximum and prefix",
    )


def resource_detail(resources: list[JSON]) -> dict[str, JSON]:
    """An object that limits only the resources."""
    return {"type": TOOL_DETAILS, "resources": resources}


def pin_details(objects: Iterable[Mapping[str, JSON]], resource: str) -> Details:
    """Read the configured details of a resource, and limit each object to that resource.

    Raises:
        ConfigurationError: see `details_from`; or an object names another resource.
    """
    details = details_from(objects, whose=f" of {resource}")
    if any(member.get("resources", [resource]) != [resource] for member in details.claim):
        raise ConfigurationError(
            "authorization_details",
            f"the authorization_details of {resource} name another resource",
            remedy="remove resources from them",
        )
    return details_from({**member, "resources": [resource]} for member in details.claim)


def _detail(claims: Claims, error: type[VerificationError]) -> Detail:
    if claims.text("type") != TOOL_DETAILS:
        raise error("detail_type_unknown", "authorization_details have an unknown type")
    claims.check_names(_DETAIL)
    arguments: dict[str, Constraint] = {}
    if claims.has("arguments"):
        rules = claims.mapping("arguments")
        if not 0 < len(rules) <= _LARGEST:
            raise error("claim_malformed", "the claim arguments has no rule, or too many")
        nested = claims.nested("arguments")
        arguments = {name: _constraint(nested.mapping(name), error) for name in rules}
    return Detail(_names(claims, "tools", error), _names(claims, "resources", error), arguments)


def _names(claims: Claims, name: str, error: type[VerificationError]) -> frozenset[str] | None:
    if not claims.has(name):
        return None
    names = claims.texts(name)
    if not names:
        raise error("claim_malformed", f"the claim {name} is an empty list, which allows nothing")
    return frozenset(names)


_WORDS: Final = ("const", "enum", "minimum", "maximum", "prefix")


def _constraint(rule: Mapping[str, JSON], error: type[VerificationError]) -> Constraint:
    if not rule.keys() <= set(_WORDS):
        raise error("constraint_unknown", "a constraint on an argument has an unknown keyword")
    if not rule:
        raise error("constraint_unknown", "a constraint on an argument is empty")
    enum, prefix = rule.get("enum"), rule.get("prefix")
    if "enum" in rule and (not isinstance(enum, list) or not enum):
        raise error("claim_malformed", "enum must be a list of values")
    if "prefix" in rule and (not isinstance(prefix, str) or not prefix):
        raise error("claim_malformed", "prefix must be a string")
    return Constraint(
        const=_value(rule["const"], error) if "const" in rule else None,
        enum=frozenset(_value(each, error) for each in enum) if isinstance(enum, list) else None,
        minimum=_bound(rule, "minimum", error),
        maximum=_bound(rule, "maximum", error),
        prefix=prefix if isinstance(prefix, str) else None,
    )


def _value(value: JSON, error: type[VerificationError]) -> bytes:
    try:
        return canonical.encode(value)
    except DeniedError:
        pass
    raise error("claim_malformed", "a value in a constraint has no canonical form")


def _bound(rule: Mapping[str, JSON], name: str, error: type[VerificationError]) -> Number | None:
    if name not in rule:
        return None
    value = rule[name]
    if not _is_number(value):
        raise error("claim_malformed", f"{name} must be a number")
    return value


def _is_number(value: JSON) -> TypeGuard[Number]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_within(value: Number | None, low: Number | None, high: Number | None) -> bool:
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


def _is_subset(child: frozenset[str] | None, parent: frozenset[str] | None) -> bool:
    return parent is None or (child is not None and child <= parent)
