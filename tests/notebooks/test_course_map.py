"""The map of the course is in step with the lessons that exist."""

import re

from gsgen_lib.viz.course_map import GROUPS, LESSONS, course_map, written
from tools.notebook_source import NOTEBOOKS


def unplanned(here):
    """Lessons that exist although the plan does not know their number."""
    return sorted(set(here) - {lesson.number for lesson in LESSONS})


def test_the_plan_counts_without_gaps():
    assert [lesson.number for lesson in LESSONS] == [f"{i:02d}" for i in range(len(LESSONS))]
    assert {lesson.group for lesson in LESSONS} == set(GROUPS)
    groups = [lesson.group for lesson in LESSONS]
    assert sorted(groups, key=list(GROUPS).index) == groups  # drawn as blocks, so each must be one block


def test_every_lesson_is_on_the_map():
    here = written()
    assert set(here.values()) == {p.name for p in NOTEBOOKS.glob("*.ipynb")}
    assert unplanned(here) == []
    assert unplanned({"99": "99_new.ipynb"}) == ["99"]


def test_what_exists_is_looked_up(tmp_path):
    assert written(tmp_path) == {}
    for name in ("03_score_distillation.ipynb", "notes.ipynb", "3_draft.ipynb"):
        (tmp_path / name).write_text("{}")
    assert list(written(tmp_path)) == ["03"]
    none, one = course_map(tmp_path / "nowhere"), course_map(tmp_path)
    assert re.search(r"in this repository now: (.*?);", none.alt)[1] == "none"
    assert re.search(r"in this repository now: (.*?);", one.alt)[1] == "03"
    assert none.png != one.png  # the drawn numbers change too


def test_the_map_that_is_stored_is_of_today():
    """Notebook 00 was executed when the lessons were those that are there now."""
    import nbformat

    told = [output.get("text", "") for cell in nbformat.read(NOTEBOOKS / "00_start_here.ipynb", 4).cells
            for output in cell.get("outputs", [])]
    line = next(text for text in told if "in this repository today:" in text).splitlines()[0]
    here = written()
    assert line == "in this repository today: " + ", ".join(here[n] for n in sorted(here))
