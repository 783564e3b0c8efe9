"""From results to JSON, tables, page and comparison."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from nodenet.cli.bench import bench
from nodenet.errors import BadInputError, CannotRunError
from perf import compare, counted, html, report
from perf.results import Result, merge, slopes
from perf.run import MODES, Settings

META: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "kernel": "6.18",
    "cpu": "a CPU",
    "cpus": 2,
    "load": [0.1, 0.1, 0.1],
    "pinned_cpu": 0,
    "backends_per_service": 1,
    "epochs": 1,
    "rounds": 4,
    "samples_per_block": 3,
    "seconds": 12,
    "tools": {"nftables": "nftables v1"},
    "noise": {"median_us": 1, "lowest": 0.9, "p90": 1.1, "highest": 1.5},
    "mitigations": {"spectre": "Mitigation: much"},
    "notes": [],
    "skipped": [{"mode": "ipvs", "workload": "", "services": 0, "reason": "this kernel has no ip_vs"}],
}


def rows(factor: float = 1.3, waver: float = 0.0) -> list[Result]:
    base = (10.0, 10.1, 9.9, 10.0)
    found = []
    for services in (1, 1000):
        for mode, metric, times in (
            ("direct", "latency", 1.0),
            ("direct", "latency_repeat", 1.0),
            ("nftables", "latency", factor + services / 1000),
        ):
            blocks = tuple(value * times * (1 + waver * index) for index, value in enumerate(base))
            found.append(Result(mode, "crr", services, metric, "us", blocks, blocks, base))
        found.append(Result("nftables", "program", services, "seconds", "s", (0.1 * services, 0.11 * services)))
        found.append(Result("nftables", "update", services, "first_connection", "ms", (5.0, 6.0)))
    return found


def whole(factor: float = 1.3, waver: float = 0.0) -> dict[str, Any]:
    found = rows(factor, waver)
    written = {"meta": META, "results": [row.as_json() for row in found], "slopes": slopes(found)}
    read: dict[str, Any] = json.loads(json.dumps(written))
    return read


def test_json_has_the_keys_of_the_contract() -> None:
    for row in whole()["results"]:
        assert {"mode", "workload", "services", "metric", "unit", "samples", "p50", "p99", "ratio_to_direct"} <= set(
            row
        )


def test_ratio_is_taken_round_by_round() -> None:
    row = Result("ebpf", "crr", 1, "latency", "us", (2.0, 40.0), (2.0, 40.0), (1.0, 20.0)).as_json()
    assert row["ratio_to_direct"] == 2
    assert row["ratio_spread"] == [2, 2]


def test_slope_is_over_direct() -> None:
    (entry,) = whole()["slopes"]
    assert (entry["mode"], entry["workload"]) == ("nftables", "crr")
    assert entry["us_per_1000_services"] == pytest.approx(10, abs=0.3)


def test_table_names_modes_noise_and_what_is_missing() -> None:
    text = report.text(whole())
    assert "Short connections" in text
    assert "1.301" in text
    assert "left out: ipvs: this kernel has no ip_vs" in text
    assert "direct again, crr at 1,000" in text
    assert "too wide to conclude" not in text


def test_a_wide_spread_is_marked() -> None:
    text = report.text(whole(waver=0.2))
    assert "too wide to conclude" in text
    assert "?" in text


def test_page_is_self_contained() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    page = html.page(whole())
    assert page.count("<svg") == 5
    for outside in ("<script", "<link", "src=", "@import", "url(http"):
        assert outside not in page
    assert "@media print" in page


def test_page_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "find_spec", lambda name: None)
    with pytest.raises(CannotRunError, match="matplotlib"):
        html.require()


def test_compare_tells_changes_beyond_noise() -> None:
    same = compare.compare(whole(), whole())
    assert {change["verdict"] for change in same["changes"] if change["workload"] == "crr"} == {"same"}
    worse = compare.compare(whole(1.3), whole(1.6))
    found = {(c["mode"], c["services"]): c["verdict"] for c in worse["changes"] if c["metric"] == "latency"}
    assert found[("nftables", 1)] == "worse"
    assert found[("direct", 1)] == "same"
    back = compare.compare(whole(1.6), whole(1.3))
    assert any(change["verdict"] == "better" for change in back["changes"])
    assert "worse" in compare.text(worse)


def test_compare_does_not_judge_a_wide_spread() -> None:
    found = compare.compare(whole(1.3), whole(2.5, waver=0.2))
    verdicts = {c["verdict"] for c in found["changes"] if c["mode"] == "nftables" and c["metric"] == "latency"}
    assert verdicts == {"unclear"}


def test_compare_on_the_command_line(tmp_path: Any) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    before.write_text(json.dumps(whole(1.3)))
    after.write_text(json.dumps(whole(1.6)))
    done = CliRunner().invoke(bench, ["compare", str(before), str(after), "-o", "json"])
    assert done.exit_code == 1
    assert any(change["verdict"] == "worse" for change in json.loads(done.stdout)["changes"])
    assert CliRunner().invoke(bench, ["compare", str(before), str(before)]).exit_code == 0
    after.write_text("{}")
    done = CliRunner().invoke(bench, ["compare", str(before), str(after)])
    assert isinstance(done.exception, BadInputError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--modes", "direct,xdp"], "--modes: xdp: unknown"),
        (["--workloads", "coffee"], "--workloads: coffee: unknown"),
        (["--services", "0"], "--services: 0: expected 1 to 50000"),
        (["--services", "many"], "--services: many: expected whole numbers"),
        (["--services", ""], "--services: expected at least one"),
        (["--cpu", "4096"], "--cpu: 4096"),
        (["--json", "/nonexistent/x.json"], "there is no folder"),
    ],
)
def test_bad_usage(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(bench, arguments)
    assert isinstance(done.exception, BadInputError)
    assert words in str(done.exception)


def test_all_problems_at_once() -> None:
    with pytest.raises(BadInputError, match=r"xdp.*coffee.*99999"):
        Settings(modes=("xdp",), workloads=("coffee",), services=(99999,)).check()


def test_times_of_a_busy_machine_are_not_judged() -> None:
    """A time without a ratio is as good as the machine was quiet."""
    before, after = whole(), whole()
    for row in after["results"]:
        if row["workload"] == "program":
            row |= {"p50": row["p50"] * 9, "interval": [value * 9 for value in row["interval"]]}

    def verdicts() -> set[str]:
        return {c["verdict"] for c in compare.compare(before, after)["changes"] if c["workload"] == "program"}

    assert verdicts() == {"worse"}
    after["meta"] = {**META, "load": [7.0, 0.1, 0.1]}
    assert verdicts() == {"unclear"}


def test_epochs_are_joined_and_their_medians_make_the_interval() -> None:
    """What differs from one set-up to the next is in the interval, though each set-up agrees with itself."""
    epochs = [
        [
            Result(
                "ebpf",
                "crr",
                1,
                "latency",
                "us",
                (time,) * 4,
                (time, time),
                (10.0, 10.0),
                extra={"switches": [4, 4, 0]},
            )
        ]
        for time in (10.0, 10.1, 10.2, 10.3, 10.4, 10.5)
    ]
    (row,) = merge(epochs)
    found = row.as_json()
    assert found["epochs"] == [10, 10.1, 10.2, 10.3, 10.4, 10.5]
    assert found["interval"] == [10, 10.5]
    assert found["ratio_interval"] == [1, 1.05]
    assert found["confidence"] == pytest.approx(0.969)
    assert found["switches"] == [24, 24, 0]
    assert len(found["samples"]) == 24


def test_a_figure_that_an_epoch_lacks_is_of_the_others() -> None:
    one = Result("ebpf", "update", 1, "sync", "ms", (1.0, 2.0))
    other = Result("nftables", "update", 1, "sync", "ms", (5.0,))
    found = merge([[one, other], [one]])
    assert [(row.mode, row.parts) for row in found] == [("ebpf", (2, 2)), ("nftables", (1,))]


def test_each_epoch_has_a_slope() -> None:
    epochs = [
        [
            Result("iptables", "crr", n, "latency", "us", (0.0,), (10 + n * step / 1000,), (10.0,))
            for n in (1, 1000, 10000)
        ]
        for step in (2, 3, 3, 3, 3, 4)
    ]
    (entry,) = slopes(merge(epochs))
    assert entry["us_per_1000_services"] == pytest.approx(3)
    assert entry["interval"] == [pytest.approx(2), pytest.approx(4)]


def test_figures_of_one_mode_stand_in_one_line() -> None:
    text = report.text(whole())
    (line,) = [line for line in text.splitlines() if line.split()[:2] == ["nftables", "1,000"] and "110" in line]
    assert line.split()[2:] == ["105", "100", "-", "110"]


def counted_report() -> dict[str, Any]:
    """A virtual machine's: direct at 100 thousand instructions, iptables at 200, and 300 at its end."""
    times = {"direct": 100.0, "iptables": 200.0}
    found = [
        Result(mode, "crr", services, metric, "us", (time,) * 6, (time,) * 2, (100.0,) * 2).as_json()
        for services in (1, 1000)
        for mode, metric, time in (
            ("direct", "latency", times["direct"]),
            ("iptables", "latency", times["iptables"]),
            ("iptables", "latency_last", 300.0),
            ("iptables", "latency_pod", 160.0),
            ("direct", "latency_repeat", 100.0),
        )
    ]
    made = {"meta": {**META, "rounds": 2}, "results": found, "slopes": []}
    read: dict[str, Any] = json.loads(json.dumps(counted.counted(made, ["program"])))
    return read


def test_counted_report_reads_as_what_it_is() -> None:
    text = report.text(counted_report())
    assert "thousand instructions per connection" in text
    assert "Counted, not timed" in text
    assert "virtual machine, kernel 6.18" in text
    assert "crr_instructions" not in text
    assert "(us)" not in text
    (line,) = [line for line in text.splitlines() if line.split()[:2] == ["iptables", "1,000"]]
    assert line.split()[2:] == ["200.0", "200.0", "-", "200.0", "2.000", "1.250", "3.000"]
    assert "left out: all program: a virtual machine only counts instructions" in text


def test_counted_report_has_a_page_and_stands_beside_another() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    alone = html.page(counted_report())
    assert "thousand instructions" in alone
    assert "microseconds" not in alone
    both = html.page(whole(), [counted_report()])
    assert both.count("<svg") == 6
    assert 'class="beside"' in both


def test_every_mode_has_a_colour_of_its_own() -> None:
    plots = pytest.importorskip("perf.plots", reason="matplotlib is not installed")
    assert list(plots.STYLE) == list(MODES)
    assert len({style.marker for style in plots.STYLE.values()}) == len(MODES)
    assert len({style.colour for style in plots.STYLE.values()}) == len(MODES)


def test_cni_rows_have_a_table() -> None:
    extra = {"leases": 2000, "at_once": 1, "ratio_to_reference": 0.2, "p99_ratio_to_reference": 0.3}
    made = whole()
    made["results"].append(Result("agent", "cni", 0, "add", "ms", (5.0, 6.0), extra=extra).as_json())
    assert "A pod starts and ends" in report.text(made)
    (line,) = [line for line in report.text(made).splitlines() if line.split()[:2] == ["agent", "ADD"]]
    assert line.split()[2:] == ["1", "2,000", "5.50", "5.99", "0.20", "0.30"]


def cni_report() -> dict[str, Any]:
    made = []
    for leases, metric, at_once in ((0, "add", 1), (10000, "add", 1), (0, "burst_add", 100), (0, "burst_del", 100)):
        extra = {"leases": leases, "at_once": at_once, "ratio_to_reference": 0.2, "p99_ratio_to_reference": 0.3}
        made += [
            Result(way, "cni", 0, metric, "ms", (5.0, 6.0), extra=extra).as_json()
            for way in ("agent", "alone", "bridge + host-local")
        ]
    return {"meta": META | {"epochs": 0}, "results": made, "slopes": []}


def test_a_pod_start_is_drawn_alone_and_beside_the_services() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    alone = html.page(cni_report())
    assert "<h1>What a pod start costs</h1>" in alone
    assert alone.count("<svg") == 2
    assert "100 calls at once" in alone
    assert html.page(whole(), [cni_report(), counted_report()]).count('class="beside"') == 2


def test_memory_says_where_it_comes_from() -> None:
    made = whole()
    made["results"].append(
        Result("nftables", "memory", 1000, "kernel", "bytes", (2.0**20,), extra={"how": "so"}).as_json()
    )
    (line,) = [line for line in report.text(made).splitlines() if line.split()[-1:] == ["so"]]
    assert line.split() == ["nftables", "1,000", "1.00", "so"]


def test_the_same_workloads_of_this_machine_do_not_stand_beside(tmp_path: Any) -> None:
    times = tmp_path / "a.json"
    times.write_text(json.dumps(whole()))
    done = CliRunner().invoke(bench, ["show", str(times), "--beside", str(times)])
    assert isinstance(done.exception, BadInputError)
    assert "of other workloads" in str(done.exception)


def test_times_are_not_compared_with_instructions(tmp_path: Any) -> None:
    times, instructions = tmp_path / "a.json", tmp_path / "b.json"
    times.write_text(json.dumps(whole()))
    instructions.write_text(json.dumps(counted_report()))
    done = CliRunner().invoke(bench, ["compare", str(times), str(instructions)])
    assert isinstance(done.exception, BadInputError)
    assert "instructions" in str(done.exception)
    done = CliRunner().invoke(bench, ["show", str(instructions), "--beside", str(times)])
    assert isinstance(done.exception, BadInputError)
    both = CliRunner().invoke(bench, ["show", str(times), "--beside", str(instructions)])
    assert "Counted, not timed" in both.stdout


def test_a_file_that_cannot_be_written_is_named(tmp_path: Any) -> None:
    source = tmp_path / "a.json"
    source.write_text(json.dumps(whole()))
    done = CliRunner().invoke(bench, ["show", str(source), "--html", "/proc/version"])
    assert isinstance(done.exception, CannotRunError)
    assert "/proc/version: not written" in str(done.exception)


def test_a_busy_machine_is_noted() -> None:
    made = whole()
    assert "others wanted the CPUs" not in report.text(made)
    made["meta"] = {**META, "load": [7.5, 1.0, 1.0]}
    assert "others wanted the CPUs (load 7.5 on 2)" in report.text(made)
