"""The web UI: six tabs over a gateway, shown by Voilà from ``notebooks/app/dashboard.ipynb``.

Every callback is a plain method that works without a browser; `Dashboard.refresh` is what runs each second.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accel_lib.errors import AccelError, require
from accel_lib.formatting import number, percent
from accel_lib.show.dashboard import html as page
from accel_lib.show.dashboard import views
from accel_lib.show.dashboard.api import Answer, Api
from accel_lib.show.dashboard.chat import Conversation
from accel_lib.show.dashboard.live import Batches, Live
from accel_lib.show.dashboard.streams import Streams

TABS = ("Try it", "Chat", "Performance", "Models", "Batching", "Health")
_ASKED = TABS[:2]  # whose content comes with a press, not by looking
_EXAMPLE = "where do cats like to sleep?"
_CORPUS = """The cat dozed on the warm windowsill.
A dog barked at the postman all morning.
Interest rates rose for the third time this year.
Kittens curl up wherever the sun falls on the floor.
The train to the coast leaves at half past seven.
Our new model serves twice as many requests per second."""
_NOTHING_ASKED = "Write a text, and at least one sentence to search."
_VIEWS_ONLY = "This key may look and not change anything. One that may: accel keys create ui --role operator"
_EVERY_S = 1.0
_SLOW = 5  # looks between two questions that cost the gateway more than its counters do


class Dashboard:
    """The page, and what its buttons do.

    Parameters
    ----------
    api
        The gateway.
    """

    def __init__(self, api: Api) -> None:
        self._w = require("ipywidgets", extra="ui")
        self.api, self.live = api, Live()
        self.areas: dict[str, Any] = {}
        self.shown = TABS[0]
        self._looks = 0
        self._batches = Batches("")
        self._streams = Streams("")
        self._operators: list[Any] = []  # what only an operator's key may use
        self._notes: list[Any] = []  # and where it says so
        self._permitted = False
        self._build()

    # what a reader sees

    @property
    def widget(self) -> Any:
        """The whole page."""
        return self._page

    def _build(self) -> None:
        self._buttons = {name: self._button(name, functools.partial(self.open, name)) for name in TABS}
        tabs = self._box(list(self._buttons.values()), "tabs")
        builders = (self._try_it, self._chat, self._performance, self._models_tab, self._batching, self._health)
        self._panels = {name: build() for name, build in zip(TABS, builders, strict=True)}
        head = f'<style>{page.STYLE}</style><h1>accel</h1><p class="sub">{html.escape(self.api.url)}</p>'
        self._body = self._box([], "body")
        self._page = self._box([self._w.HTML(head), tabs, self._body], "accel")
        self.open(TABS[0])

    def open(self, name: str) -> None:
        """Show one tab, loaded at once."""
        self.shown = name
        for tab, button in self._buttons.items():
            (button.add_class if tab == name else button.remove_class)("on")
        self._body.children = (self._panels[name],)
        self._looks = 0
        if name not in _ASKED:
            self.refresh()

    def refresh(self) -> None:
        """Look at the gateway once and bring the open tab up to date; an error is shown where its numbers would be."""
        slow = self._looks % _SLOW == 0
        self._looks += 1
        try:
            samples = self.api.metrics()
            self.live.look(time.monotonic(), samples)
            self._streams.look(time.monotonic(), samples)
            if self.shown == "Performance":
                if slow or self.live.gpus:
                    self.live.look_at_gpus(self.api.get("/v1/status")["gpus"])
                self._set("performance", views.performance(self.live))
            elif self.shown == "Models" and slow:
                self._permit()
                self._models_changed(self.api.get("/v1/models")["data"])
            elif self.shown == "Batching":
                self._permit()
                self._set("batching", self._batching_html())
            elif self.shown == "Health" and slow:
                self._set("health", views.health(self.api.get("/v1/status")))
        except AccelError as error:
            if self.shown not in _ASKED:  # there, the reader is told when he asks
                self._set(self.shown.lower(), page.failure(error.cause, error.fix))

    async def watch(self, every_s: float = _EVERY_S) -> None:
        """Refresh for ever, next to the page's callbacks; what a refresh costs is taken from the pause."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await loop.run_in_executor(None, self.refresh)
            await asyncio.sleep(max(0.1, every_s - (loop.time() - began)))

    # try it

    def _try_it(self) -> Any:
        self._asks = {
            "nearest sentences": self._nearest,
            "sentences that answer": self._reranked,
            "sentiment": self._sentiment,
        }
        self.task = self._w.Dropdown(options=[*self._asks], description="Ask for")
        self.query = self._w.Text(value=_EXAMPLE, description="Text")
        self.corpus = self._w.Textarea(value=_CORPUS, description="Sentences to search, one a line")
        self.task.observe(lambda change: self._task_changed(change["new"]), "value")
        ask = self._button("Ask", self.ask, main=True)
        fields = self._box([self.task, self.query], "row")
        area = self._area("try it", page.empty("Press Ask: the answer and where its time went appear here."))
        return self._box([fields, self.corpus, self._box([ask], "row"), area], "panel")

    def _task_changed(self, task: str) -> None:
        self.corpus.layout.display = "none" if task == "sentiment" else ""

    def ask(self) -> None:
        """Send the text, and show the answer with its times."""
        self._set("try it", page.loading("Asking"))
        try:
            shown = self._asks[self.task.value]()
        except AccelError as error:
            shown = page.failure(error.cause, error.fix)
        self._set("try it", shown)

    def _nearest(self) -> str:
        sentences = self._sentences()
        if not sentences:
            return page.empty(_NOTHING_ASKED)
        body = {"model": "embedding", "input": [self.query.value, *sentences], "truncate": "END"}
        answer = self.api.infer("/v1/embeddings", body)
        vectors = np.array([item["embedding"] for item in answer.body["data"]], dtype=np.float32)
        cosine = vectors[1:] @ vectors[0]
        rows = [
            (sentences[i], f"{abs(cosine[i]) if abs(cosine[i]) < 5e-4 else cosine[i]:.3f}") for i in np.argsort(-cosine)
        ]
        return page.heading("Nearest first") + page.table(("sentence", "cosine"), rows) + self._times(answer)

    def _sentences(self) -> list[str]:
        """Those to search; none if there is no text to search them for."""
        lines = [line.strip() for line in self.corpus.value.splitlines()]
        return [line for line in lines if line and self.query.value.strip()]

    def _reranked(self) -> str:
        sentences = self._sentences()
        if not sentences:
            return page.empty(_NOTHING_ASKED)
        answer = self.api.infer("/v1/rerank", {"query": self.query.value, "documents": sentences, "truncate": "END"})
        rows = [(sentences[item["index"]], percent(item["relevance_score"])) for item in answer.body["results"]]
        return page.heading("Most relevant first") + page.table(("sentence", "relevance"), rows) + self._times(answer)

    def _sentiment(self) -> str:
        if not self.query.value.strip():
            return page.empty("Write a text.")
        answer = self.api.infer("/v1/classify", {"model": "sentiment", "input": self.query.value, "truncate": "END"})
        (item,) = answer.body["data"]
        scores = sorted(item["scores"].items(), key=lambda pair: -pair[1])
        rows = [(label, percent(score)) for label, score in scores]
        return page.heading(str(item["label"])) + page.table(("class", "probability"), rows) + self._times(answer)

    def _times(self, answer: Answer) -> str:
        title = f"Where the time went, version {answer.version}" if answer.version else "Where the time went"
        return page.heading(title) + page.stages(answer.times_ms)

    # chat

    def _chat(self) -> Any:
        self.message = self._w.Text(value="What is the capital of France?", description="Message")
        area = self._area("chat", page.empty("Write something, and press Send."))
        self.conversation = Conversation(self.api, lambda shown: self._set("chat", shown))
        buttons = [
            self._button("Send", self.send, main=True),
            self._button("Stop", self.conversation.stop),
            self._button("New chat", self.conversation.forget),
        ]
        return self._box([self._box([self.message, *buttons], "row"), area], "panel")

    def send(self) -> None:
        """Send the message; the answer appears as it comes."""
        self.conversation.send(self.message.value)

    # performance

    def _performance(self) -> Any:
        return self._box([self._area("performance", page.loading("Looking at the gateway"))], "panel")

    # models

    def _models_tab(self) -> Any:
        self.model = self._w.Dropdown(options=[], description="Model")
        self.weights = self._w.Text(value="1: 90, 2: 10", description="Share of each version")
        moves = [
            self._button("Load", lambda: self.act("load")),
            self._button("Unload", lambda: self.act("unload")),
        ]
        shares = [
            self._button("Split traffic", self.split),
            self._button("Promote the largest", self.promote),
            self._button("Roll back", self.roll_back),
        ]
        self._operators += [self.weights, *moves, *shares]
        parts = [
            self._area("models", page.loading("Asking for the models")),
            self._w.HTML(page.heading("Load or unload")),
            self._note(),
            self._box([self.model, *moves], "row"),
            self._w.HTML(page.heading("A/B between versions of the chosen model")),
            self._box([self.weights, *shares], "row"),
            self._area("models action", ""),
        ]
        return self._box(parts, "panel")

    def _note(self) -> Any:
        self._notes.append(self._w.HTML(""))
        return self._notes[-1]

    def _permit(self) -> None:
        """Ask once what the key may do; until then, and if it may not, nothing is offered that an operator's can."""
        if self._permitted:
            return
        allowed = "operator" in self.api.get("/v1/status")["roles"]
        for control in self._operators:
            control.disabled = not allowed
        for note in self._notes:
            note.value = "" if allowed else page.empty(_VIEWS_ONLY)
        self._permitted = True

    def _models_changed(self, models: list[dict[str, Any]]) -> None:
        names = [model["id"] for model in models]
        for chooser in (self.model, self.batched):
            if list(chooser.options) != names:
                chosen = chooser.value
                chooser.options = names
                chooser.value = chosen if chosen in names else next(iter(names), None)
        self._set("models", views.models(models))

    def act(self, action: str) -> None:
        """Load or unload the chosen model."""
        name = self.model.value
        self._try("models action", f"{action.capitalize()} {name}", lambda: self._act(action, name))

    def _act(self, action: str, name: str) -> str:
        self.api.send("POST", f"/v1/models/{name}/{action}")
        self._models_changed(self.api.get("/v1/models")["data"])
        return f"{name}: {action}ed"

    def split(self) -> None:
        """Share the chosen model's requests among its versions."""
        plan = {"model": self.model.value, "weights": _weights(self.weights.value), "sticky": "user"}
        self._try("models action", "Splitting", lambda: self._experiment(plan))

    def promote(self) -> None:
        """Let the version with the largest share answer everything."""
        weights = _weights(self.weights.value)
        best = max(weights, key=lambda version: weights[version], default="")
        self._try("models action", "Promoting", lambda: self._experiment({"action": "promote", "version": best}))

    def roll_back(self) -> None:
        """Let the version that was live before answer everything."""
        self._try("models action", "Rolling back", lambda: self._experiment({"action": "rollback"}))

    def _experiment(self, change: Mapping[str, Any]) -> str:
        view = self.api.send("PUT", f"/v1/experiments/{self.model.value}", dict(change))
        shares = ", ".join(f"version {version}: {number(share)}" for version, share in view["weights"].items())
        return f"{view['model']}: {view['status'].replace('_', ' ')}; {shares}; live: version {view['live_version']}"

    # batching

    def _batching(self) -> Any:
        self.batched = self._w.Dropdown(options=[], description="Model")
        self.delay_us = self._w.BoundedIntText(value=0, min=0, max=10_000_000, step=100, description="Queue delay, µs")
        self.instances = self._w.BoundedIntText(value=1, min=1, max=64, description="Instances")
        self.rows = self._w.BoundedIntText(value=8, min=1, max=1_024, description="Rows, if it generates")
        self.cache_tokens = self._w.BoundedIntText(
            value=16_384, min=1_024, max=10**9, step=1_024, description="Tokens in its cache"
        )
        self.times = self._w.BoundedFloatText(value=1.0, min=0.1, max=100, step=0.1, description="× the present load")
        apply = self._button("Apply", self.apply, main=True)
        self._operators.append(apply)
        parts = [
            self._area("batching", page.loading("Asking for batch sizes")),
            self._w.HTML(page.heading("Predict a setting, and apply it")),
            self._note(),
            self._box([self.batched, self.delay_us, self.instances, apply], "row"),
            self._box([self.rows, self.cache_tokens, self.times], "row"),
            self._area("batching action", ""),
        ]
        return self._box(parts, "panel")

    def _batching_html(self) -> str:
        if not self.batched.value:
            self._models_changed(self.api.get("/v1/models")["data"])
        name = self.batched.value
        if not name:
            return page.empty("No model is in the repository.")
        if name != self._streams.model:
            self._streams = Streams(name)
        if self.live.generates(name):
            return self._generation_html()
        if name != self._batches.model:
            now = self.api.get(f"/v1/models/{name}/batching")
            self.delay_us.value = now["dynamic_batching"]["max_queue_delay_us"]
            self.instances.value = now["instance_group"]["count"]
            self._batches = Batches(name)
        self._batches.look(time.monotonic(), self.api.get(f"/v1/models/{name}/statistics"))
        return views.batching(self._batches, self._simulated())

    def _generation_html(self) -> str:
        try:
            predicted = self._streams.predict(
                rows=self.rows.value, cache_tokens=self.cache_tokens.value, times=self.times.value
            )
        except AccelError as error:
            return views.generation(self._streams, None) + page.failure(error.cause, error.fix)
        return views.generation(self._streams, predicted)

    def _simulated(self) -> Mapping[int, float] | None:
        from accel_lib.show.dashboard.simulator import predicted_sizes

        seen = self._batches
        if not seen.requests_per_s:
            return None
        return predicted_sizes(
            seen.requests_per_s,
            seen.rows_per_request,
            seen.sizes,
            seen.batch_ms,
            max_queue_delay_us=self.delay_us.value,
            instance_count=self.instances.value,
        )

    def apply(self) -> None:
        """Set queue delay and instances of the chosen model."""
        name = self.batched.value
        change = {
            "dynamic_batching": {"max_queue_delay_us": self.delay_us.value},
            "instance_group": {"count": self.instances.value},
        }
        self._try("batching action", f"Reloading {name}", lambda: self._apply(name, change))

    def _apply(self, name: str, change: dict[str, Any]) -> str:
        now = self.api.send("PUT", f"/v1/models/{name}/batching", change)
        delay, count = now["dynamic_batching"]["max_queue_delay_us"], now["instance_group"]["count"]
        return f"{name}: queue delay {delay:,} µs, {count} instance{'s' if count > 1 else ''}; its counters restart"

    # health

    def _health(self) -> Any:
        return self._box([self._area("health", page.loading("Asking every component"))], "panel")

    # pieces

    def _try(self, area: str, what: str, action: Callable[[], str]) -> None:
        self._set(area, page.loading(what))
        try:
            self._set(area, page.done(action()))
        except AccelError as error:
            self._set(area, page.failure(error.cause, error.fix))

    def _area(self, name: str, content: str) -> Any:
        self.areas[name] = self._w.HTML(content)
        return self.areas[name]

    def _set(self, name: str, content: str) -> None:
        if self.areas[name].value != content:  # the browser is told of changes only, so that nothing flickers
            self.areas[name].value = content

    def _button(self, text: str, action: Callable[[], None], *, main: bool = False) -> Any:
        button = self._w.Button(description=text, layout=self._w.Layout(width="auto"))
        button.add_class("act" if text not in TABS else "tab")
        if main:
            button.add_class("main")
        button.on_click(lambda _: action())
        return button

    def _box(self, children: list[Any], name: str) -> Any:
        box = self._w.Box(children, layout=self._w.Layout(display="block" if name not in ("tabs", "row") else "flex"))
        box.add_class(name)
        return box


def open_dashboard(url: str, key: str) -> Dashboard:
    """Show the dashboard of a gateway in this cell, kept up to date as long as the kernel lives."""
    dashboard = Dashboard(Api(url, key))
    importlib.import_module("IPython.display").display(dashboard.widget)
    with contextlib.suppress(RuntimeError):  # no running loop: a test, or a plain script
        dashboard.task_of_watch = asyncio.get_running_loop().create_task(dashboard.watch())  # type: ignore[attr-defined]
    return dashboard


def _weights(text: str) -> dict[str, float]:
    """``"1: 90, 2: 10"`` as shares by version.

    Raises
    ------
    AccelError
        It reads otherwise.
    """
    try:
        pairs = [part.split(":") for part in text.split(",") if part.strip()]
        weights = {version.strip(): float(share) for version, share in pairs}
    except ValueError:
        weights = {}
    if not weights:
        raise AccelError("Shares are versions with numbers.", seen=text, fix="write 1: 90, 2: 10")
    return weights
