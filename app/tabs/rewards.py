"""The Rewards page: what shall score high, on which prompts, Start; then the run's curves and pictures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app import text, text_rewards
from app.form import Form, FormError, Values
from app.presets import OF_REWARDS
from app.site import Site
from app.tabs.length import Length
from app.tabs.parts import PRIVATE, problem_box, section, settings_group
from app.tabs.reward_picker import SLOTS, RewardPicker
from app.tabs.reward_run import METHOD, RewardRun
from app.tabs.train_settings import check_paths
from lrdiff.alignprop.specs import parse
from lrdiff.backbones import embedded
from lrdiff.errors import DataError, LrdiffError
from lrdiff.prompts import prompts_in, read_prompts
from trainers.alignprop.config import AlignPropRun
from trainers.run import read_config
from trainers.rundir import RunDir

BASIC = frozenset({"method.reward", "method.prompts", "method.held_out", "model", "optim.steps"})


class RewardsTab:
    """The components of the page and what they mean together."""

    def __init__(self, site: Site) -> None:
        """Render the page inside the present gradio context."""
        self.site = site
        self.form = Form(AlignPropRun, skip=AlignPropRun.unread)
        shipped = AlignPropRun(method={})  # pyright: ignore[reportArgumentType] - pydantic takes a mapping
        self._files = {"method.prompts": shipped.train_prompts, "method.held_out": shipped.held_out_prompts}
        gr.HTML(f"<p class='lead'>{text_rewards.LEAD}</p>", padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                self._render_rewards()
                self._render_prompts()
                self._render_length()
                self.advanced = self._render_advanced()
                self.estimate = gr.HTML(padding=False, elem_id="reward-estimate")
                self.problems = gr.HTML(visible=False, elem_id="reward-problems")
                with gr.Row(elem_classes="go"):
                    self.start = gr.Button(
                        text_rewards.START, variant="primary", size="lg", scale=3, elem_id="start-reward"
                    )
                    self.probe = gr.Button(text.CHECK, size="lg", scale=1, min_width=110, elem_id="check-reward")
            with gr.Column(scale=6, min_width=300):
                self.run = RewardRun(site)
        self._wire()

    @property
    def inputs(self) -> set[Any]:
        """Every component that decides a run."""
        return {*self.form.components.values(), *self.rewards.parts, self.name}

    def component(self, path: str) -> Any:
        """Return the component of a setting."""
        return self.form.components[path]

    def _render_rewards(self) -> None:
        about = text_rewards.REWARDS_ABOUT
        gr.HTML(section(text_rewards.REWARDS_TITLE, about), elem_classes="section", padding=False)
        with gr.Group():
            self.rewards = RewardPicker(parse(self.form.field("method.reward").default[0]))
            self.form.bind("method.reward", self.rewards.first)
            field = self.form.field("model")
            model = gr.Dropdown(
                embedded.names() or [field.default], value=field.default, label=text.label("model"),
                info=text.help(field), allow_custom_value=True, elem_id="reward-model",
            )  # fmt: skip
            self.form.bind("model", model)

    def _render_prompts(self) -> None:
        gr.HTML(section(text_rewards.PROMPTS_TITLE), elem_classes="section", padding=False)
        with gr.Group():
            words = (
                ("method.prompts", text_rewards.PROMPTS, text_rewards.PROMPTS_INFO, "reward-prompts"),
                ("method.held_out", text_rewards.HELD_OUT, text_rewards.HELD_OUT_INFO, "reward-held-out"),
            )
            for path, label, info, name in words:
                value = _lines(self._files[path], path)
                self.form.add(path, value=value, label=label, info=info, lines=3, max_lines=5, elem_id=name)

    def _render_length(self) -> None:
        gr.HTML(section(text.LENGTH_TITLE), elem_classes="section", padding=False)
        with gr.Group():
            self.length = Length(OF_REWARDS, self.form, text_rewards.PRESET_INFO)
            with gr.Row():
                self.form.add("optim.steps", min_width=140)
                self.name = gr.Textbox(label=text.RUN_NAME, info=text_rewards.RUN_NAME_INFO, max_lines=1, min_width=140)

    def _render_advanced(self) -> gr.Accordion:
        with gr.Accordion(text.ADVANCED, open=False) as accordion:
            for prefix, title in text.GROUPS.items():
                if paths := self.form.missing(prefix):
                    settings_group(title, self.form, paths, given={"method.r": {"label": text_rewards.RANK}})
        return accordion

    def _wire(self) -> None:
        self.length.wire()
        deciding = ("model", "optim.steps", "method.sampling_steps", "data.batch_size", "watch.preview_every")
        changes = [self.component(path).change for path in deciding]
        gr.on(changes, self.foresee, self.inputs, self.foreseen, queue=False, **PRIVATE)
        self.probe.click(
            self._measure, self.inputs, self.foreseen, concurrency_id="check", concurrency_limit=1,
            api_visibility="private", show_progress="minimal", show_progress_on=self.estimate,
        )  # fmt: skip
        self.start.click(self._explain, self.inputs, self.explained, queue=False, **PRIVATE)

    @property
    def explained(self) -> list[Any]:
        """What `explain` brings up to date."""
        return [self.problems, self.advanced]

    @property
    def foreseen(self) -> list[Any]:
        """What `foresee` brings up to date."""
        return [self.estimate, self.length.choice]

    def foresee(self, values: Values) -> list[Any]:
        """Return updates of what the page says about time, memory and disk."""
        try:
            config = self.read(values).model_dump(mode="json")
        except FormError:
            return [gr.skip(), gr.skip()]
        return self.length.foresee(self.site.queue, METHOD, config)

    def _measure(self, values: Values) -> list[Any]:
        problems = self.check(values)
        if problems:
            return [problem_box(problems, text.NOT_CHECKED), gr.skip()]
        config = self.read(values).model_dump(mode="json")
        return self.length.measure(self.site.queue, METHOD, config, nullcontext({}))

    def read(self, values: Values) -> AlignPropRun:
        """Return the run configuration of the form, with the shipped prompts. Raises `FormError`."""
        rewards = self.rewards.specs(values)
        return self.form.read(values, method__reward=rewards, method__prompts=None, method__held_out=None)

    def check(self, values: Values) -> dict[str, str]:
        """Return what stands against starting a run, by path of the setting."""
        prompts = self._prompts(values)
        problems = {path: text_rewards.NO_PROMPTS for path, lines in prompts.items() if not lines}
        try:
            config = self.read(values)
        except FormError as error:
            return problems | error.problems
        return problems | check_paths(config) | _check_rewards(config, prompts)

    def submit(self, values: Values) -> RunDir:
        """Put the run into the queue, with a copy of prompts of one's own. Raises `FormError`."""
        problems = self.check(values)
        if problems:
            raise FormError(problems)
        config = self.read(values)
        prompts = self._prompts(values).items()
        own = {path: "\n".join(lines) for path, lines in prompts if lines != read_prompts(self._files[path], path)}
        label = values[self.name] or "-".join(spec.name for spec in config.method.rewards())
        return self.site.queue.submit(METHOD, config.model_dump(mode="json"), {}, label, texts=own)

    def _prompts(self, values: Values) -> dict[str, list[str]]:
        return {path: prompts_in(values[self.component(path)] or "") for path in self._files}

    def _explain(self, values: Values) -> list[Any]:
        return self.explain(self.check(values))

    def explain(self, problems: Mapping[str, str]) -> list[Any]:
        """Return updates of the problems and of Advanced, which is opened where one of them lies in it."""
        opened = gr.update(open=True) if set(problems) - BASIC else gr.skip()
        box = problem_box(problems, text.PROBLEMS) if problems else ""
        return [gr.update(value=box, visible=bool(problems)), opened]

    def with_run(self, run: RunDir) -> dict[Component, Any]:
        """Return updates of the inputs that repeat a run.

        Raises:
            LrdiffError: The run has more rewards than this page holds, or its prompts cannot be read.
        """
        config: AlignPropRun = read_config(run.read())  # pyright: ignore[reportAssignmentType]
        rewards = config.method.rewards()
        if len(rewards) > SLOTS:
            facts = {"name": run.path.name, "count": len(rewards), "path": run.record_path}
            raise DataError(text_rewards.TOO_MANY.format(slots=SLOTS, **facts))
        files = {"method.prompts": config.train_prompts, "method.held_out": config.held_out_prompts}
        words = {self.component(path): _lines(file, path) for path, file in files.items()}
        return {**self.form.write(config), **self.rewards.write(rewards), **words, self.name: ""}


def _lines(file: Path, setting: str) -> str:
    return "\n".join(read_prompts(file, setting))


def _check_rewards(config: AlignPropRun, prompts: Mapping[str, list[str]]) -> dict[str, str]:
    """Look for what small rewards need, so that a run does not fail a minute after it was started."""
    import torch

    from lrdiff.alignprop.build import build
    from lrdiff.alignprop.prompt_match import named

    monitor = [parse(config.method.monitor)] if config.method.monitor else []
    asked = {"method.reward": config.method.rewards(), "method.monitor": monitor}
    for path, specs in asked.items():
        try:
            for spec in specs:
                # The others load networks of gigabytes; the run itself says what is wrong with them.
                if spec.name in ("likeness", "palette", "prompt-match"):
                    build(spec, torch.device("cpu"))
        except LrdiffError as error:
            return {path: str(error)}
    if any(spec.name == "prompt-match" for specs in asked.values() for spec in specs):
        for path, lines in prompts.items():
            try:
                for line in lines:
                    named(line)
            except LrdiffError as error:
                return {path: str(error)}
    return {}
