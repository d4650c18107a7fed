"""The Rewards page asks for rewards and prompts, starts runs towards them, and shows what came of them."""

from __future__ import annotations

import html
import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from app import main, text, text_rewards
from app.form import FormError
from app.jobs import Queue
from app.site import Site
from app.tabs import picker
from app.tabs.generate import GenerateTab
from app.tabs.reward_run import METHOD, curves
from app.tabs.rewards import RewardsTab
from app.tabs.train import TrainTab
from lrdiff.alignprop.specs import ARGUMENTS, MEASURED
from lrdiff.errors import DataError
from lrdiff.generate_config import AdapterSpec
from lrdiff.metadata import read_parameters
from lrdiff.prompts import read_prompts
from tests.app.conftest import ended, wait_for
from tests.app.test_browser import CHROMIUM, FLAGS, SLOW
from tests.app.test_form import leaves
from trainers.alignprop.config import AlignPropRun
from trainers.rundir import RunDir, create


@pytest.fixture
def site(tmp_path: Path, queue: Queue) -> Site:
    return Site(queue, tmp_path / "outputs", tmp_path / "none", adapters=tmp_path / "adapters")


@pytest.fixture
def tab(site: Site) -> RewardsTab:
    with gr.Blocks():
        return RewardsTab(site)


def values_of(tab: RewardsTab, **changes: Any) -> dict[Any, Any]:
    """Return what the components hold, with changes by path; `rewards` are triples of name, argument and weight."""
    values = {part: part.value for part in tab.inputs}
    for number, reward in enumerate(changes.pop("rewards", ())):
        row = (tab.rewards.names[number], tab.rewards.arguments[number], tab.rewards.weights[number])
        values |= dict(zip(row, reward, strict=True))
    return values | {tab.component(path.replace("__", ".")): value for path, value in changes.items()}


def make_run(site: Site, name: str = "bright", method: str = METHOD, **own: Any) -> RunDir:
    """Write a run with figures and previews, as a trainer does."""
    config = AlignPropRun.model_validate({"method": own})
    run = create(site.queue.root / name, method, config.model_dump(mode="json"))
    for step in range(4):
        drawn = {"loss": -0.1, "reward_brightness": step / 10, "reward_contrast": 0.2, "grad_norm": 1.0}
        measured = {"held_out_brightness": step / 20, "diversity": 0.5 - step / 10}
        run.append_metrics(
            {"step": step, "time": 1.0, **(drawn if step else {}), **(measured if step % 3 == 0 else {})}
        )
    for step in (0, 2, 4):
        (run.previews / f"{step:06d}").mkdir(parents=True)
        Image.new("RGB", (8, 8), "teal").save(run.previews / f"{step:06d}" / "prompt00-00.png")
    return run


# ---- the form


def test_the_page_holds_every_field_once(tab: RewardsTab) -> None:
    assert tab.form.missing() == []
    known = leaves(AlignPropRun(method={}).model_dump())  # pyright: ignore[reportArgumentType]
    assert set(tab.form.components) | set(AlignPropRun.unread) == known
    assert len({part._id for part in tab.form.components.values()}) == len(tab.form.components)


def test_it_begins_with_the_defaults(tab: RewardsTab) -> None:
    assert tab.read(values_of(tab)) == AlignPropRun(method={})  # pyright: ignore[reportArgumentType]
    assert tab.check(values_of(tab)) == {}


def test_every_reward_is_explained_and_no_other(tab: RewardsTab) -> None:
    assert set(text_rewards.REWARDS) == set(ARGUMENTS) - set(MEASURED)
    assert set(text_rewards.ARGUMENTS) == {name for name, wanted in ARGUMENTS.items() if wanted}
    assert {value for _, value in tab.rewards.first.choices} == set(text_rewards.REWARDS)  # pyright: ignore[reportGeneralTypeIssues]
    for _, sentence in text_rewards.REWARDS.values():
        assert sentence.count(".") == sentence.endswith(".") == 1


def test_rewards_are_written_with_what_they_need_and_their_weights(tab: RewardsTab) -> None:
    rows = [("brightness", "left over", -0.5), ("palette", " #ff0000,#00ff00 ", 1), ("prompt-match", "probe-a", 2)]
    config = tab.read(values_of(tab, rewards=rows))
    assert config.method.reward == ("brightness:-0.5", "palette=#ff0000,#00ff00", "prompt-match=probe-a:2")


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"rewards": [("palette", "", 1)]}, "method.reward", "needs colours as #rrggbb"),
        ({"rewards": [("palette", "red", 1)]}, "method.reward", "'red' is no colour"),
        ({"rewards": [("likeness", "/absent.png", 1)]}, "method.reward", "/absent.png cannot be read as a picture"),
        ({"rewards": [("brightness", "", 0)]}, "method.reward", "a weight of 0 says nothing"),
        ({"rewards": [("brightness", "", None)]}, "method.reward", "a weight of 0 says nothing"),
        ({"rewards": [("brightness", "", 1), ("brightness", "", 1)]}, "method.reward", "twice"),
        (
            {"rewards": [("prompt-match", "probe-a", 1)], "method__prompts": "a portrait of Anna"},
            "method.prompts",
            "names nothing that a probe reads",
        ),
        ({"method__monitor": "prompt-match=probe-z"}, "method.monitor", "no probe 'probe-z'"),
        ({"method__held_out": " \n "}, "method.held_out", text_rewards.NO_PROMPTS),
        ({"method__k": 30}, "method", "k=30 is more than sampling_steps=10"),
        ({"model": "absent"}, "model", "no such"),
    ],
)
def test_what_is_wrong_is_named_at_its_field(tab: RewardsTab, changes: dict[str, Any], path: str, words: str) -> None:
    problems = tab.check(values_of(tab, **changes))
    assert set(problems) <= {path, ""}
    assert words in " ".join(problems.values())
    with pytest.raises(FormError):
        tab.submit(values_of(tab, **changes))
    assert tab.site.queue.runs() == []


def test_own_prompts_go_into_the_run_and_shipped_ones_stay_where_they_are(tab: RewardsTab) -> None:
    rows = [("brightness", "", 1), ("contrast", "", 1)]
    run = tab.submit(values_of(tab, rewards=rows, method__prompts="a  red cube\n\na blue ball\n"))
    config = AlignPropRun.model_validate(run.read()["config"])
    assert config.train_prompts == run.path / "method.prompts.txt"
    assert read_prompts(config.train_prompts, "") == ["a red cube", "a blue ball"]
    assert config.method.held_out is None
    assert "brightness-contrast" in run.path.name
    assert [item["method"] for _, item in tab.site.queue.runs()] == [METHOD]


def test_a_run_is_repeated_with_its_settings(tab: RewardsTab) -> None:
    rows = [("brightness", "", -0.5), ("palette", "#ff0000", 2)]
    changes: dict[str, Any] = {"method__prompts": "a red cube", "optim__steps": 7, "method__r": 2}
    run = tab.submit(values_of(tab, rewards=rows, **changes))
    values = values_of(tab) | tab.with_run(run)
    again = tab.submit(values)
    first, second = (item.read()["config"] for item in (run, again))
    assert Path(second["method"].pop("prompts")).read_text() == Path(first["method"].pop("prompts")).read_text()
    assert second == first
    many = make_run(tab.site, reward=["brightness", "contrast", "sharpness", "symmetry"])
    with pytest.raises(DataError, match=r"holds 3 rewards, and bright has 4; .*lrdiff train alignprop"):
        tab.with_run(many)


def test_the_train_page_leads_to_this_one(site: Site) -> None:
    with gr.Blocks():
        train = TrainTab(site)
    assert METHOD not in train.settings.forms
    assert METHOD not in dict(train.settings.method.choices)  # pyright: ignore[reportGeneralTypeIssues]
    assert text.TAB_REWARDS in text.PROMPT_ABOUT


# ---- the run


def test_curves_are_told_apart(site: Site) -> None:
    found = curves(make_run(site).metrics())
    assert set(found) == set(text_rewards.CURVES)
    assert sorted(set(found["reward"]["series"])) == ["brightness", "contrast"]
    assert list(found["held_out"][text.CHART_LOSS]) == [0.0, 0.15]
    assert list(found["diversity"][text.CHART_STEP]) == [0, 3]
    assert len(found["grad_norm"]) == 3


def test_a_run_shows_its_ends_and_only_what_changed_is_sent_again(tab: RewardsTab) -> None:
    view = tab.run
    assert view.refresh(None, {})[0]["visible"] is False
    make_run(tab.site)
    config = {**make_run(tab.site, "mug").read(), "method": "lora"}
    shutil.rmtree(tab.site.queue.root / "mug")
    create(tab.site.queue.root / "mug", "lora", config["config"])
    shown = view.refresh("mug", {})
    by = dict(zip([part.elem_id or type(part).__name__ for part in view.outputs], shown, strict=True))
    assert [name for _, name in by["reward-run"]["choices"]] == ["bright"], "only runs towards rewards"
    assert by["reward-run"]["value"] == "bright"
    pictures = html.unescape(by["before-after"])
    assert pictures.count("<img") == 2
    assert pictures.index("000000/") < pictures.index("After step 4") < pictures.index("000004/")
    again = dict(zip(view.outputs[:-1], view.refresh("bright", shown[-1]), strict=False))
    assert again.pop(view.card) == view.glance("bright")[0]
    assert all(update == gr.skip() for update in again.values())


def test_the_page_asks_for_everything_only_when_something_happened(tab: RewardsTab) -> None:
    view = tab.run
    empty = view.glance(None)[1]
    run = make_run(tab.site)
    card, stamp = view.glance(None)
    assert stamp != empty
    assert view.glance("bright") == (card, stamp)
    run.append_metrics({"step": 5, "loss": 0.1, "seconds_per_step": 1.0})
    later = view.glance("bright")[1]
    assert later != stamp
    Image.new("RGB", (8, 8)).save(run.previews / "000004" / "9.png")
    assert view.glance("bright")[1] not in (stamp, later)


def test_a_run_that_waits_can_be_stopped(tab: RewardsTab) -> None:
    view = tab.run
    run = tab.submit(values_of(tab))
    name = tab.site.queue.name(run)
    stop = view.outputs.index(view.stop)
    assert view.refresh(name, {})[stop]["visible"] is True
    view._stop(name)
    assert run.read()["state"] == "stopped"
    assert view.refresh(name, {})[stop]["visible"] is False


def test_the_slider_between_two_adapters_follows_their_weights() -> None:
    assert picker._mixed(1.0, 1.0) == {"value": 0.5}
    assert picker._mixed(0.75, 0.25) == {"value": 0.25}
    assert picker._mixed(0.0, 0.0) == {}, "it stays where it is"


def test_strength_and_steps_go_along_to_the_generate_page(site: Site) -> None:
    with gr.Blocks():
        tab = GenerateTab(site)
    chosen = [AdapterSpec(Path("runs/a"), 0.5, 0.25, 1.0), AdapterSpec(Path("runs/b"), 1.5)]
    values: dict[Any, Any] = {part: part.value for part in tab.inputs} | tab.picker.write("toys", chosen)
    for part, spec in zip(tab.picker.choices, chosen, strict=False):
        values[part] = str(spec.path)  # what is not on the shelf is not offered
    values[tab.picker.choices[2]] = ""
    assert tab.picker.specs(values) == ["runs/a:0.5@0.25-1", "runs/b:1.5"]
    assert tab.read(values).adapters == tuple(chosen)
    values |= {tab.picker.ranges[0].begin: 1.0}
    assert "smaller to a larger share" in tab.check(values)["adapter"]


# ---- in a browser


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_from_a_reward_to_pictures_that_follow_it(
    site: Site, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choose, start, watch, and take the adapter along with its strength and steps; mix it with another."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    served = main.build(site=site)
    url = main.launch(served, site, "127.0.0.1", 0)
    site.queue.start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 360, "height": 900})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.goto(url)
        page.get_by_role("tab", name=text.TAB_REWARDS, exact=True).click()
        shown = page.get_by_role("tabpanel").filter(visible=True)

        def fill(name: str, value: str) -> None:
            shown.get_by_label(name, exact=True).filter(visible=True).first.fill(value)

        page.locator("#reward-1 input").click()
        page.get_by_role("option", name=text_rewards.REWARDS["brightness"][0], exact=True).click()
        expect(page.locator("#reward-1")).to_contain_text(text_rewards.REWARDS["brightness"][1])
        page.locator("#reward-model input").fill(str(tiny_model))
        page.locator("#reward-model input").press("Enter")
        fill("Steps", "2")
        page.locator("#reward-prompts textarea").fill("a red cube\na blue ball")
        page.locator("#reward-held-out textarea").fill("a green ring")
        page.get_by_role("button", name=text.ADVANCED).filter(visible=True).click()
        fill(text.label("method.k"), "30")
        page.locator("#start-reward").click()
        expect(page.locator("#reward-problems")).to_contain_text("k=30 is more than sampling_steps=10")
        assert site.queue.runs() == []
        for name, value in ((text.label("method.k"), "1"), ("Sampling steps", "2"), ("Preview steps", "2")):
            fill(name, value)
        page.locator("#start-reward").click()
        wait_for(site.queue.runs)
        [(run, _)] = site.queue.runs()
        wait_for(ended(run))
        assert run.read()["state"] == "finished", run.read()["outcome"]
        expect(page.locator("#reward-card .badge")).to_have_text(text.STATES["finished"])
        expect(page.locator("#before-after img")).to_have_count(4)
        for key in text_rewards.CURVES:
            page.locator(f"#curve-{key} svg.marks, #curve-{key} canvas").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator("#strength input[type=number]").fill("0.5")
        page.locator("#strength input[type=number]").press("Enter")
        shown.get_by_role("button", name=text.STEP_RANGE).filter(visible=True).click()
        limit = shown.get_by_label(f"number input for {text.STEP_BEGIN}").filter(visible=True)
        limit.fill("0.5")
        limit.press("Enter")
        page.locator("#use-reward").click()
        expect(page.locator("#adapter input")).to_have_value(site.queue.name(run))
        page.locator("#generate").click()
        page.locator("#results img").first.wait_for(timeout=SLOW)
        [first] = site.outputs.glob("*.png")
        assert read_parameters(first)["config"]["adapter"] == [f"{run.path}:0.5@0.5-1"]

        shown.get_by_label(text.ADAPTER_ALSO, exact=True).filter(visible=True).first.click()
        page.get_by_role("option", name=site.queue.name(run), exact=True).click()
        page.locator("#mix input[type=number]").fill("0.25")
        page.locator("#mix input[type=number]").press("Enter")
        weights = shown.get_by_label(f"number input for {text.WEIGHT}").filter(visible=True)
        for number, weight in enumerate(("0.75", "0.25")):
            expect(weights.nth(number)).to_have_value(weight)
        page.locator("#generate").click()
        wait_for(lambda: len(list(site.outputs.glob("*.png"))) == 2)

        page.get_by_role("tab", name=text.TAB_RUNS, exact=True).click()
        page.locator("#repeat").click()
        page.get_by_role("tab", name=text.TAB_REWARDS, exact=True, selected=True).wait_for()
        expect(page.locator("#reward-prompts textarea")).to_have_value("a red cube\na blue ball")
        browser.close()
    served.close(verbose=False)
    [second] = set(site.outputs.glob("*.png")) - {first}
    used = [f"{run.path}:0.75@0.5-1", f"{run.path}:0.25"]
    assert read_parameters(second)["config"]["adapter"] == used
