"""No filter costs more than its limits say: the work is counted in lines of Python that run, not timed."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodenet.flow import field_tests, glob, limits, matcher, selector
from nodenet.flow.filter import EventTypeMatch, FilterError, FlowFilter, InterfaceMatch, Origin
from nodenet.flow.matcher import compile_filters
from nodenet.flow.ring import READ_SIZE, Query, Reader, Ring
from nodenet.flow.types import Workload

# The fixture only makes flows: it has no state that an example could leave behind.
_FACTORY = [HealthCheck.function_scoped_fixture]
ORIGIN = Origin("node-1.example.com", "blue", ("zone=a", "disk"), "0123456789abcdef0123")


class Lines:
    """Counts the lines of this project's code that run inside the `with`."""

    def __enter__(self):
        self.count = 0
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_error):
        sys.settrace(self._before)

    def _call(self, frame, _event, _argument):
        return self._line if "/nodenet/flow/" in frame.f_code.co_filename else None

    def _line(self, _frame, event, _argument):
        self.count += event == "line"
        return self._line


# Texts that are hard for a matcher that backtracks, and ordinary ones.
_TEXTS = st.one_of(
    st.builds(lambda n, end: "*" * n + end, st.integers(0, 400), st.sampled_from(["", "Z", "1", ".com"])),
    st.builds(lambda n: "*n" * n + "Z", st.integers(1, 400)),
    st.builds(lambda n, end: "," * n + end, st.integers(0, 1000), st.sampled_from(["", ")", "a"])),
    st.builds(lambda n, end: "k in (" + ",  " * n + end, st.integers(0, 300), st.sampled_from([")", "!", ""])),
    st.builds(
        lambda n, c: c * n, st.integers(0, limits.MAX_LENGTH), st.sampled_from(["a", "a=b,", "!", " ", "/", ":"])
    ),
    st.builds(
        lambda a, b: f"{a}/{b}", st.sampled_from(["", "shop", "a" * 500]), st.sampled_from(["", "web", "b" * 500])
    ),
    st.sampled_from(["shop/web", "app=web", "10.0.0.0/8", "fd00::/64", "80", "tcp", "node-*", "blue/node-1", "*.com"]),
    st.text(max_size=40),
)
_NUMBERS = st.integers(-(2**31), 2**31 - 1)
_SPECIAL = {
    "source_workload": st.builds(Workload, _TEXTS, _TEXTS),
    "destination_workload": st.builds(Workload, _TEXTS, _TEXTS),
    "interface": st.builds(InterfaceMatch, _NUMBERS, _TEXTS),
    "event_type": st.builds(EventTypeMatch, _NUMBERS, st.booleans(), _NUMBERS),
    "http_header": st.tuples(_TEXTS, _TEXTS),
    "tcp_flags": st.integers(0, 255),
    "reply": st.booleans(),
    "encrypted": st.booleans(),
}
_NUMERIC = {
    "traffic_direction", "verdict", "drop_reason_desc", "source_identity", "destination_identity", "ip_version",
    "ip_trace_id",
}  # fmt: skip


def _values(name):
    one = _SPECIAL.get(name, _NUMBERS if name in _NUMERIC else _TEXTS)
    return st.lists(one, min_size=1, max_size=8).map(tuple)


_FILTERS = st.dictionaries(st.sampled_from([spec.name for spec in fields(FlowFilter)]), st.none(), max_size=6).flatmap(
    lambda names: st.fixed_dictionaries({name: _values(name) for name in names}).map(lambda found: FlowFilter(**found))
)


@settings(deadline=None, max_examples=100, suppress_health_check=_FACTORY)
@given(whitelist=st.lists(_FILTERS, max_size=4), blacklist=st.lists(_FILTERS, max_size=3))
def test_what_a_filter_may_cost_is_known_before_it_is_used(make_flow, whitelist, blacklist):
    length = sum(len(str(one)) for one in (*whitelist, *blacklist))
    with Lines() as lines:
        try:
            test = compile_filters(whitelist, blacklist, ORIGIN)
        except FilterError:
            test = None
    assert lines.count <= 3000 + 40 * length, "to read a filter costs no more than its length"
    if test is None:
        return
    assert test.steps <= limits.MAX_STEPS
    flows = [make_flow(), make_flow(type=1, reason=-133), make_flow(daddr=ip_address("fd00::1"), ip_version=6)]
    for flow in flows:
        with Lines() as lines:
            test(flow)
        assert lines.count <= 60 + 30 * (test.steps + len(whitelist) + len(blacklist)), "`steps` bounds the work"


@settings(deadline=None, max_examples=30, suppress_health_check=_FACTORY)
@given(one=_FILTERS)
def test_four_thousand_flows_cost_a_bounded_number_of_steps_and_others_have_their_turn(make_flow, one):
    try:
        test = compile_filters([one], [], ORIGIN)
    except FilterError:
        return
    ring, flow, asked = Ring(4096), make_flow(), []
    for _ in range(4000):
        ring.append(flow)

    def counted(seen):
        asked.append(seen)
        return False

    reader = Reader(ring, Query(number=1, matches=counted, steps=test.steps))
    done = False
    while not done:
        done = reader.read().done
        assert len(asked) * test.steps <= max(2 * limits.STEPS_PER_READ, 2 * test.steps)
        assert len(asked) <= 2 * READ_SIZE
        asked.clear()


@pytest.mark.parametrize(
    "selector_text",
    [
        "," * 1000,
        "k in (" + ",  " * 300 + "!",
        "k in (" + " " * 1000,
        "k notin (" + "a , " * 250 + "\N{SNOWMAN})",
        "a" * 1000 + "!",
        "a-" * 500,
        "k" + " " * 1000 + "?",
        "x:" * 500 + "a",
    ],
)
def test_a_selector_that_cannot_be_read_is_refused_in_one_pass(selector_text):
    with Lines() as lines, pytest.raises(ValueError, match="cannot read"):
        selector.parse(selector_text)
    assert lines.count <= 50 + 12 * len(selector_text)


@pytest.mark.parametrize("module", [field_tests, glob, matcher, selector])
def test_what_reads_a_clients_texts_has_no_regular_expressions(module):
    assert not {"re", "fnmatch"} & set(vars(module))


_ALPHABET = st.text("ab.*", max_size=8)


@given(pattern=_ALPHABET.filter(bool), name=st.text("ab.", max_size=8))
def test_a_glob_means_what_a_regular_expression_would(pattern, name):
    expected = re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) is not None
    assert glob.matches(pattern, name) is expected


_KEY = r"(?:[a-z0-9-]+:)?[A-Za-z0-9](?:[A-Za-z0-9_./-]*[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9_.:/-]*"
# Right for short texts; for long ones Python's engine would take for ever.
_GRAMMAR = [
    rf"{_KEY} +(?:in|notin) *\( *{_VALUE}(?: *, *{_VALUE})* *\)",
    rf"{_KEY} *(?:==|=|!=) *{_VALUE}",
    rf"!? *{_KEY}",
]


@settings(max_examples=400)
@given(st.one_of(st.text("ab:=!(), /-", max_size=9), st.from_regex("|".join(_GRAMMAR), fullmatch=True)))
def test_the_selectors_that_can_be_read_are_those_of_the_grammar(text):
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", text)]
    # An empty selector matches everything.
    readable = not text.strip() or all(any(re.fullmatch(form, part, re.ASCII) for form in _GRAMMAR) for part in parts)
    try:
        selector.parse(text)
    except ValueError:
        assert not readable
    else:
        assert readable


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([FlowFilter()] * 101, "whitelist: 101 filters, at most 100"),
        ([FlowFilter(uuid=("a",) * 1025)], "uuid: 1025 values .*, at most 1024"),
        ([FlowFilter(source_pod=("a/",) * 600, source_port=("1",) * 600)], "source_port: 1200 values"),
        ([FlowFilter(uuid=("a",) * 600), FlowFilter(protocol=("tcp",) * 600)], "protocol: 1200 values"),
        ([FlowFilter(source_ip=("1" * 1025,))], "source_ip: a value of 1025 characters, at most 1024"),
        ([FlowFilter(node_name=("*" * 1025,))], "node_name: a value of 1025 characters"),
        ([FlowFilter(source_workload=(Workload("a" * 1025, ""),))], "source_workload: a value of 1025"),
        ([FlowFilter(http_header=(("a", "b" * 1025),))], "http_header: a value of 1025"),
        (
            [FlowFilter(source_label=tuple(f"a{n}," + "b," * 500 + "c" for n in range(9)))],
            "source_label: a flow would need 4518 comparisons, at most 4096",
        ),
        (
            [FlowFilter(source_pod=tuple(f"/a{n}" for n in range(140)), destination_label=("a," * 501 + "a",) * 2)] * 7,
            "destination_label: a flow would need 4501",
        ),
    ],
)
def test_what_is_over_a_limit_is_refused_by_name(filters, message):
    with pytest.raises(FilterError, match=message):
        compile_filters(filters, [], ORIGIN)


def test_a_message_does_not_grow_with_the_value():
    with pytest.raises(FilterError) as caught:
        compile_filters([FlowFilter(protocol=("\N{GRINNING FACE}" * 1024,))], [], ORIGIN)
    assert len(str(caught.value)) < 300


def test_an_expensive_filter_looks_at_fewer_flows_at_once(make_flow):
    labels = tuple(f"a{n},{'b,' * 490}c" for n in range(8))
    test = compile_filters([FlowFilter(source_label=labels)], [], ORIGIN)
    assert test.steps == 8 * 492
    ring, flow = Ring(64), make_flow()
    for _ in range(64):
        ring.append(flow)
    asked = []
    for query in (
        Query(number=1, steps=test.steps, matches=asked.append),
        Query(steps=test.steps, matches=asked.append),
    ):
        Reader(ring, query).read()
        assert len(asked) == limits.STEPS_PER_READ // test.steps == 2
        asked.clear()
