"""docs/scale.md: its model reproduces what was measured, and its tables are what the model says."""

import pytest

from bench import scale_plan
from bench.measured import Missing, Tables, figure, recorded
from bench.page import part
from bench.scale_model import (
    ALONE,
    ALONE_PER_S,
    COMPARED,
    EVERYTHING,
    FEW,
    HALL,
    MANY,
    SMALL,
    SMALL_MANY,
    THEIR_OWN,
    TOLERANCE,
    Costs,
    Scene,
    calibrated,
    comparisons,
    simulate,
)

COSTS = Costs(
    wake_us=8,
    other_us=20,
    few_publication_us=8,
    publication_growth_us=2,
    dropped_us=4,
    few_send_us=4,
    send_growth_us=1,
    load_publish_us=10,
    load_receipt_us=2,
)


def recorded_with(costs: Costs) -> Tables:
    """The tables of a machine on which everything costs exactly this."""
    page = []
    for point in (ALONE, FEW, HALL, SMALL, SMALL_MANY, THEIR_OWN, EVERYTHING, *COMPARED):
        seen, clients = simulate(point.scene, costs), point.scene.clients
        load_us = costs.load_receipt_us + costs.load_publish_us / clients
        if point is MANY:
            load_us = costs.load_receipt_us
        columns = ["", "messages per CPU-s", "messages per s", "load's core", "p50 ms", "of a core"]
        cells = [point.row, f"{seen.per_cpu_s:.0f}", "100000", f"{load_us * 10:.4f}%", f"{seen.p50_ms:.4f}"]
        cells.append(f"{ALONE_PER_S * clients / seen.per_cpu_s:.6%}")
        lines = "\n".join(f"| {' | '.join(each)} |" for each in (columns, ["---"] * 6, cells))
        page.append((point.table, lines))
    # The rows of one table stand below one heading.
    titles = dict.fromkeys(title for title, _ in page)
    text = ""
    for title in titles:
        rows = [lines.splitlines() for each, lines in page if each == title]
        text += "\n".join([f"### {title}", "", *rows[0][:2], *(row[2] for row in rows)]) + "\n\n"
    return Tables(text)


def test_a_figure_is_read_as_it_is_written() -> None:
    assert [figure(text) for text in ("1,024", "1.2k", "1.20M", "7.4%", "0.27", "3.4 us")] == [
        *(1024, 1200, 1_200_000, pytest.approx(0.074), 0.27, 3.4)
    ]
    with pytest.raises(Missing):
        figure("-")


def test_a_table_ends_before_the_next_section() -> None:
    tables = Tables("### One\n\n| a | b |\n| --- | --- |\n| x | 1 |\n\n## Two\n\n| c |\n")
    assert tables.figure("One", "x", "b") == 1
    with pytest.raises(Missing, match="One: y: b"):
        tables.figure("One", "y", "b")


def test_one_publication_at_a_time_costs_what_it_is_made_of() -> None:
    seen = simulate(Scene(sessions=1, clients=100, in_flight=1), COSTS)
    assert seen.per_cpu_s == pytest.approx(100e6 / (8 + 8 + 100 * 4))


def test_several_at_once_share_a_wake_up() -> None:
    one, many = (simulate(Scene(50, 2, in_flight), COSTS).per_cpu_s for in_flight in (1, 16))
    assert one == pytest.approx(2e6 / (8 + 8 + 2 * 4))
    assert one < many < 2e6 / (8 + 2 * 4)


def test_processes_that_hear_what_is_not_theirs_do_less() -> None:
    everything, their_own, together = (
        simulate(Scene(2500, 2, 64, 4, is_together, hears_all), COSTS).per_cpu_s
        for is_together, hears_all in ((False, True), (False, False), (True, False))
    )
    assert everything < their_own < together


def test_the_costs_of_a_machine_are_found_in_what_it_does() -> None:
    tables = recorded_with(COSTS)
    found = calibrated(tables)
    assert found.wake_us == pytest.approx(COSTS.wake_us, rel=0.1)
    for sessions in (50, 2500):
        assert found.publication_us(sessions) == pytest.approx(COSTS.publication_us(sessions), rel=0.15)
    assert found.other_us == pytest.approx(COSTS.other_us, rel=0.15)
    assert found.dropped_us == pytest.approx(COSTS.dropped_us, rel=0.15)
    assert found.send_us(18_000) == pytest.approx(COSTS.send_us(18_000), rel=0.05)
    assert all(abs(each.is_off_by) < 0.05 for each in comparisons(found, tables))


def test_the_model_reproduces_the_points_it_was_not_made_from() -> None:
    tables = recorded()
    compared = comparisons(calibrated(tables), tables)
    assert not {each.what: round(each.is_off_by, 2) for each in compared if abs(each.is_off_by) > TOLERANCE}


def test_scale_md_has_the_tables_of_the_model() -> None:
    page = scale_plan.PAGE.read_text()
    for name, text in scale_plan.parts(recorded()).items():
        assert part(page, name).strip() == text, "python -m bench.scale_model --write"
