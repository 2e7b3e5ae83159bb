"""The page in a real browser."""

import json
import time

import pytest
from boards import write_run

from gradmem_bench.leaderboard.build import build

WIDTH = "return document.documentElement.scrollWidth"
OVERFLOW = """
    const places = [...document.querySelectorAll('.group .scroll')];
    return Math.max(...places.map(place => place.scrollWidth - place.clientWidth));
"""


@pytest.fixture(scope="module")
def page(filled, tmp_path_factory) -> str:
    return build(filled, tmp_path_factory.mktemp("page") / "index.html").as_uri()


@pytest.fixture
def opened(browser, page):
    """The page as it is first seen at 1280 by 900, with no errors before and after the test."""
    show(browser, 1280, 900)
    browser.get(page)
    browser.execute_script("localStorage.clear()")
    browser.get(page)
    yield browser
    assert browser.get_log("browser") == []


def show(browser, width: int, height: int, scheme: str = "light") -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)


def find(browser, selector: str) -> list:
    return browser.find_elements("css selector", selector)


def seen(browser, selector: str) -> list:
    return [element for element in find(browser, selector) if element.is_displayed()]


def column(browser, number: int) -> list[str]:
    """The texts of a column of the first table's runs, in the order in which they are shown."""
    return [cell.text for cell in seen(browser, f"#table-1 tr.run > :nth-child({number})")]


def choose(browser, name: str, value: str) -> None:
    option = f"select[name={name}] option"
    next(one for one in find(browser, option) if one.text == value).click()


def wait_until(true) -> None:
    """The browser tells of another colour scheme with its next frame."""
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def press(browser, key: str) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.switch_to.active_element.send_keys(getattr(Keys, key))


def test_it_shows_a_chart_with_a_point_and_an_interval_for_every_row(opened):
    assert len(seen(opened, "#table-1 .chart .point")) == 5
    assert len(seen(opened, "#table-1 .chart .whisker")) == 5
    assert len(seen(opened, "#table-2 .chart .point")) == 1
    assert seen(opened, "#count")[0].text == "6 of 6 rows"
    # On the logarithmic axis 2 KiB to 4 KiB is as far as 4 KiB to 8 KiB; 0 bytes have a place left of all.
    where = {
        point.get_attribute("aria-label").split(",")[0]: point.rect["x"] + point.rect["width"] / 2
        for point in find(opened, "#table-1 .chart .point")
    }
    assert min(where, key=where.get) == "no_memory" and max(where, key=where.get) == "full_kv"


def test_points_tell_their_details_on_hover_and_on_focus_and_lead_to_their_row(opened):
    from selenium.webdriver import ActionChains

    point = next(one for one in find(opened, ".point") if "no_memory" in one.get_attribute("aria-label"))
    ActionChains(opened).move_to_element(find(opened, "#table-1 .point .shape")[0]).perform()
    assert seen(opened, "#tip") and "exact match 0.067" in seen(opened, "#tip")[0].text
    ActionChains(opened).move_to_element(find(opened, "h1")[0]).perform()
    assert not seen(opened, "#tip")
    opened.execute_script("arguments[0].focus()", point)
    assert "no_memory" in seen(opened, "#tip")[0].text
    press(opened, "ESCAPE")
    assert not seen(opened, "#tip")
    press(opened, "ENTER")
    (fold,) = seen(opened, "tr.more")
    assert "floor" in opened.switch_to.active_element.find_element("xpath", "ancestor::tr").get_attribute("class")
    assert "Environment" in fold.text and "gradmem-bench run --method no_memory" in fold.text


def test_a_column_sorts_both_ways_by_number_and_says_so(opened):
    heading = find(opened, "#table-1 thead th")[2]
    assert heading.get_attribute("aria-sort") == "none"
    button = heading.find_element("css selector", "button")
    opened.execute_script("arguments[0].focus()", button)
    press(opened, "ENTER")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(opened, 3) == ["0 B", "2 KiB", "2 KiB", "4 KiB", "40 KiB"]
    press(opened, "SPACE")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(opened, 3) == ["40 KiB", "4 KiB", "2 KiB", "2 KiB", "0 B"]
    name = find(opened, "#table-1 thead th")[0]
    name.find_element("css selector", "button").click()
    assert (name.get_attribute("aria-sort"), heading.get_attribute("aria-sort")) == ("ascending", "none")
    assert [text.split()[0] for text in column(opened, 1)] == ["full_kv", "gradmem", "no_memory", "rmt", "rmt"]


def test_the_first_click_puts_the_best_score_and_the_least_cost_first(opened):
    first = {}
    for heading in find(opened, "#table-1 thead th[data-sort]"):
        heading.find_element("css selector", "button").click()
        first[heading.text.replace("\n", " ")] = heading.get_attribute("aria-sort")
    descending = [name for name, order in first.items() if order == "descending"]
    assert descending == ["Exact match 95 % interval", "Normalised 0 floor, 1 ceiling"]
    assert set(first.values()) == {"ascending", "descending"} and len(first) == 10
    find(opened, "#table-1 thead th button")[1].click()
    scores = [float(text.split()[0]) for text in column(opened, 2)]
    assert scores == sorted(scores, reverse=True)


def test_several_seeds_are_one_row_and_one_point_with_a_dot_and_a_link_for_each(opened):
    (row,) = (one for one in seen(opened, "#table-1 tr.run") if "2 seeds" in one.text)
    assert row.text.startswith("gradmem")
    (point,) = (one for one in find(opened, "#table-1 .point") if "gradmem" in one.get_attribute("aria-label"))
    assert "seeds 0: 0.750, 1: 0.800" in point.get_attribute("aria-label")
    dots = [dot.rect["y"] for dot in point.find_elements("css selector", ".seed")]
    mark = point.find_element("css selector", ".shape").rect
    assert len(dots) == 2 and min(dots) < mark["y"] + mark["height"] / 2 < max(dots)
    opened.execute_script("arguments[0].focus()", point)
    assert "seeds 0: 0.750, 1: 0.800" in seen(opened, "#tip")[0].text
    press(opened, "ENTER")
    (fold,) = seen(opened, "tr.more")
    links = [link.get_attribute("href") for link in fold.find_elements("css selector", "section.seed a")]
    assert [link.split("/")[-2:] for link in links if link.endswith("run.json")] == [
        ["gradmem-1", "run.json"],
        ["gradmem-2", "run.json"],
    ]
    # What made each is folded, and opens by the keyboard.
    (first, _) = fold.find_elements("css selector", "section.seed summary")
    opened.execute_script("arguments[0].focus()", first)
    assert "Environment" not in fold.text
    press(opened, "ENTER")
    assert "Environment" in fold.text and "seed 0, 1,000 steps" in fold.text


def test_what_no_run_was_measured_for_has_no_chart_and_says_so(opened):
    choose(opened, "axis", "WRITE FLOPs")
    assert not find(opened, ".point")
    assert find(opened, "#table-1 figcaption")[0].text == "FLOPs of one WRITE: not measured for these runs"
    choose(opened, "axis", "state bytes")
    assert len(find(opened, "#table-1 .point")) == 5


def test_filters_leave_what_was_chosen_and_its_floor_and_ceiling_dimmed(opened):
    field, count = seen(opened, "input[name=method]")[0], seen(opened, "#count")[0]
    assert field.get_attribute("placeholder") == "part of a name"
    offered = [one.get_attribute("value") for one in find(opened, "#methods option")]
    assert offered == ["full_kv", "gradmem", "GradMem K=1", "no_memory", "rmt"]
    field.send_keys("GradMEM")
    assert count.text == "2 of 6 rows, with 2 of floor and ceiling, dimmed"
    assert sorted(text.split()[0] for text in column(opened, 1)) == ["full_kv", "gradmem", "no_memory"]
    assert [row.text.split()[0] for row in seen(opened, "tr.run.dimmed")] == ["full_kv", "no_memory"]
    assert len(seen(opened, "#table-1 .point")) == 3 and len(seen(opened, "#table-1 .point.dimmed")) == 2
    choose(opened, "task", "squad_removed")
    assert count.text == "1 of 6 rows" and not seen(opened, "#table-1")
    seen(opened, "button[type=reset]")[0].click()
    assert seen(opened, "#table-1") and not find(opened, ".dimmed")
    # The paper's row of this task stays too; where no method of a task is left, so does none of its references.
    field.send_keys("rmt")
    assert [row.text.split()[0] for row in seen(opened, ".group .paper tr.dimmed")] == ["GradMem"]
    field.send_keys("x")
    assert count.text == "0 of 6 rows" and not seen(opened, ".group")
    seen(opened, "button[type=reset]")[0].click()
    choose(opened, "budget", "4 KiB")
    assert [text.split()[0] for text in column(opened, 1)] == ["full_kv", "rmt", "no_memory"]
    assert not seen(opened, "#table-2")
    choose(opened, "budget", "all")
    choose(opened, "backbone", "gpt2</script>")
    assert count.text == "1 of 6 rows"


@pytest.fixture
def crowded(browser, tmp_path):
    """Five memories of 2 KiB, one of them of K 2 evaluated at K 5, between a floor and a ceiling."""
    folder = tmp_path / "kv_retrieval"
    write_run(folder / "no_memory-1", "no_memory", 4, "floor", 0, 0, parameters={})
    write_run(folder / "full_kv-1", "full_kv", 60, "ceiling", 40_960, 40, parameters={})
    write_run(folder / "rmt-1", "rmt", 44, parameters={})
    write_run(folder / "mean_pool-1", "mean_pool", 43, parameters={})
    for right, steps, evaluated in ((45, 2, None), (46, 5, None), (47, 2, 5)):
        parameters = {"inner_steps": steps, "evaluation_inner_steps": evaluated}
        write_run(folder / f"gradmem-{right}", right=right, parameters=parameters)
    show(browser, 1280, 900)
    browser.get(build(tmp_path, tmp_path / "index.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


def middle(element) -> float:
    return element.rect["x"] + element.rect["width"] / 2


def test_what_costs_the_same_stands_apart_on_a_band_around_its_true_place(crowded):
    (band,) = find(crowded, ".band")
    inside = [one for one in find(crowded, ".point .shape") if abs(middle(one) - middle(band)) < band.rect["width"] / 2]
    places = sorted(middle(one) for one in inside)
    assert len(places) == 4 and min(b - a for a, b in zip(places, places[1:], strict=False)) > 12
    assert sum(places) / 4 == pytest.approx(middle(band), abs=1)
    # The front rises at the true cost.
    true = crowded.execute_script(
        "const front = document.querySelector('.front');"
        "return front.getPointAtLength(0).x + Number(/H([0-9.]+)/.exec(front.getAttribute('d'))[1])"
        "- front.getPointAtLength(0).x + front.ownerSVGElement.getBoundingClientRect().x"
    )
    assert middle(band) == pytest.approx(true, abs=1)
    assert "what costs the same stands side by side on a band" in find(crowded, "figcaption")[0].text
    for point in find(crowded, ".point"):
        crowded.execute_script("arguments[0].focus()", point)
        label = point.get_attribute("aria-label")
        if "2 KiB" in label:
            assert "2 KiB (2,048 bytes)" in seen(crowded, "#tip")[0].text


def test_an_axis_without_shared_costs_has_no_band(opened, tmp_path):
    write_run(tmp_path / "kv_retrieval" / "gradmem-1")
    opened.get(build(tmp_path, tmp_path / "index.html").as_uri())
    assert not find(opened, ".band") and "side by side" not in find(opened, "figcaption")[0].text


def test_points_of_another_k_are_told_and_those_evaluated_elsewhere_are_drawn_when_asked(crowded):
    labels = [point.get_attribute("aria-label") for point in find(crowded, ".point")]
    assert sum("gradmem" in label for label in labels) == 2 and sum("evaluated at K" in label for label in labels) == 0
    legend = find(crowded, "figcaption")[0]
    assert "gradmem, K 2" in legend.text and "gradmem, K 5" in legend.text
    assert "1 evaluated at another K than trained with: not drawn" in legend.text
    assert sorted(one.text for one in find(crowded, ".point .k")) == ["2", "5"]
    seen(crowded, "[name=any_k]")[0].click()
    (point,) = [one for one in find(crowded, ".point") if "K 2, evaluated at K 5" in one.get_attribute("aria-label")]
    assert len(find(crowded, ".point .hollow")) == len(point.find_elements("css selector", ".hollow")) == 1
    assert "not drawn" not in legend.text and "hollow: evaluated at another K" in legend.text
    crowded.execute_script("arguments[0].focus()", point)
    assert "trained with K 2, evaluated at K 5" in seen(crowded, "#tip")[0].text


def test_another_axis_redraws_the_chart(opened):
    title = "#table-1 .chart svg"
    before = [point.rect["x"] for point in find(opened, "#table-1 .point")]
    choose(opened, "axis", "READ positions")
    assert "READ positions" in find(opened, title)[0].get_attribute("aria-label")
    assert [point.rect["x"] for point in find(opened, "#table-1 .point")] != before


def test_light_and_dark_follow_the_system_until_the_button_is_pressed(opened, page):
    def background() -> int:
        colour = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(json.loads(colour.replace("rgb(", "[").replace(")", "]")))

    assert background() > 700
    show(opened, 1280, 900, "dark")
    assert background() < 100
    wait_until(lambda: seen(opened, "#theme")[0].text == "Light")
    seen(opened, "#theme")[0].click()
    assert background() > 700
    opened.get(page)
    assert background() > 700


def test_a_phone_scrolls_its_tables_and_not_the_page_and_says_that_there_is_more(opened, page):
    assert not seen(opened, "#table-1 .sideways")
    show(opened, 390, 844)
    opened.get(page)
    assert opened.execute_script(WIDTH) == 390
    wait_until(lambda: seen(opened, "#table-1 .sideways"))
    assert "more columns" in seen(opened, "#table-1 .sideways")[0].text
    # Name, score and state are in sight, the rest one scroll away; name and button stay where they are.
    (score, state, training) = (find(opened, f"#table-1 tr.run td:nth-child({n})")[0] for n in (2, 3, 10))
    name, button = find(opened, "#table-1 tr.run > th")[0], find(opened, "#table-1 tr.run .open button")[0]
    assert score.rect["x"] >= name.rect["x"] + name.rect["width"]
    assert state.rect["x"] + state.rect["width"] <= button.rect["x"] + 1
    assert training.rect["x"] > 390
    heads = [head.value_of_css_property("background-color") for head in find(opened, "#table-1 thead th")]
    assert len(set(heads)) == 1
    before = (name.rect["x"], button.rect["x"])
    opened.execute_script("document.querySelector('#table-1 .scroll').scrollLeft = 10000")
    assert training.rect["x"] + training.rect["width"] <= button.rect["x"]
    assert (name.rect["x"], button.rect["x"]) == pytest.approx(before, abs=1)
    opened.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", button)
    button.click()
    (fold,) = seen(opened, "tr.more .fold")
    assert fold.rect["x"] >= 0 and fold.rect["x"] + fold.rect["width"] <= 390
    assert opened.execute_script(WIDTH) == 390


def test_a_phone_tells_budgets_apart_and_keeps_names_whole(opened, page):
    show(opened, 390, 844)
    opened.get(page)
    rows = [" ".join(name.text.split()) for name in seen(opened, "#table-1 tr.run > th")]
    # Two bounds of one method, told without unfolding.
    assert sorted(row for row in rows if row.startswith("rmt")) == ["rmt 4 KiB", "rmt 8 positions"]
    assert sum(row in ("full_kv ceiling", "no_memory floor") for row in rows) == 2
    # Names of one line: the font is 13 px high.
    lines = [(word.text, word.rect["height"] < 26) for word in seen(opened, "#table-1 tr.run > th .whole")]
    assert ("no_memory", True) in lines and all(one for _, one in lines)
    show(opened, 1280, 900)
    # There the budget has a column of its own.
    assert not any("positions" in name.text for name in seen(opened, "#table-1 tr.run > th"))


def test_without_scripts_every_row_and_its_command_can_be_read(browser, page):
    show(browser, 1280, 900)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page)
        assert len(seen(browser, "tr.run")) == len(seen(browser, "tr.more")) == 6
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_published_records_make_a_page_without_errors(browser, published, tmp_path):
    show(browser, 1280, 900)
    browser.get(build(published / "tiny", tmp_path / "index.html").as_uri())
    assert browser.get_log("browser") == []
    browser.execute_script("document.querySelector('[name=any_k]').click()")
    assert len(find(browser, ".point")) == len(find(browser, "tr.run")) >= 10
    assert (browser.execute_script(OVERFLOW), seen(browser, ".sideways")) == (0, [])
    show(browser, 390, 844)
    browser.get(browser.current_url)
    assert browser.execute_script(WIDTH) == 390
