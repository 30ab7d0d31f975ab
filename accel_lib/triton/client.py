"""Client of a model served by Triton: texts or token ids in, vectors out, over gRPC or HTTP."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accel_lib.artifact import MANIFEST_FILE, TOKENIZER_FILE, Artifact, Manifest
from accel_lib.errors import AccelError, RequestError, ServerError, require
from accel_lib.ragged import SEGMENTS, Ragged, by_name
from accel_lib.scores import to_scores, unique_labels
from accel_lib.triton.config import ModelConfig
from accel_lib.triton.error_messages import request_error
from accel_lib.triton.repository import ARTIFACT_FOLDER, versions
from accel_lib.triton.reranking import RankedPassage, ranked
from accel_lib.triton.statistics import STAGES, Statistics, Timeline

if TYPE_CHECKING:
    from accel_lib.triton.generation_client import Prompt

_MESSAGE_BYTES = 2**31 - 1
_CHANNEL = (
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # the server is on this machine: the environment's proxy is not for it
)
_HTTP_TIMEOUT_S = 60.0
_STABLE_S = 0.3  # counters that stay the same for this long are complete
_STABLE_TIMEOUT_S = 3.0  # a model that other clients use never becomes stable


class Connection:
    """tritonclient's clients of one server: gRPC for all threads, HTTP one per thread, as it is not thread-safe."""

    def __init__(self, *, grpc: str, http: str) -> None:
        self._grpc_address = grpc
        self._http_address = http
        self._local = threading.local()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called, as when the server is stopped."""
        return self._closed

    @property
    def grpc(self) -> Any:
        """Tritonclient's gRPC client; raises `RequestError` once the server was stopped."""
        if self._closed:
            raise request_error("", "UNAVAILABLE: the server was stopped")
        return self._grpc_client

    @functools.cached_property
    def _grpc_client(self) -> Any:
        module = require("tritonclient.grpc", extra="triton")
        return module.InferenceServerClient(self._grpc_address, channel_args=list(_CHANNEL))

    def http(self, timeout_s: float) -> Any:
        """Tritonclient's HTTP client of this thread and timeout."""
        clients = self._local.__dict__.setdefault("clients", {})
        if timeout_s not in clients:
            module = require("tritonclient.http", extra="triton")
            clients[timeout_s] = module.InferenceServerClient(self._http_address, network_timeout=timeout_s)
        return clients[timeout_s]

    def index(self, timeout_s: float | None = None) -> list[Any]:
        """Triton's repository index: messages with name, version, state and reason."""
        with _translated("the server"):
            return list(self.grpc.get_model_repository_index(client_timeout=timeout_s).models)

    def statistics(self, name: str, version: str = "") -> list[Any]:
        """Triton's statistics messages of one model, one a version."""
        with _translated(name):
            return list(self.grpc.get_inference_statistics(name, version).model_stats)

    def answered(self, name: str) -> int:
        """Requests a model has responded to since it was loaded; 0 when it is not."""
        with contextlib.suppress(RequestError):
            return sum(m.inference_stats.success.count for m in self.statistics(name))
        return 0

    def load(self, name: str, override: str | None, explain: Callable[[str], AccelError]) -> None:
        """Load a model and wait for it; `explain` makes the error from what Triton says."""
        exceptions = require("tritonclient.utils", extra="triton")
        try:
            self.grpc.load_model(name, config=override)
        except exceptions.InferenceServerException as error:
            raise explain(str(error.message())) from error

    def unload(self, name: str) -> None:
        """Ask Triton to unload a model."""
        with _translated(name):
            self.grpc.unload_model(name)

    def close(self) -> None:
        """Close the gRPC channel; later requests are refused."""
        self._closed = True
        if "_grpc_client" in self.__dict__:
            self._grpc_client.close()


class Host(Protocol):
    """The server that a model runs on, as far as a handle on the model needs it."""

    repository: Path
    connection: Connection

    @property
    def pid(self) -> int: ...
    @property
    def running(self) -> bool: ...
    @property
    def grpc_url(self) -> str: ...
    @property
    def http_url(self) -> str: ...
    @property
    def metrics_url(self) -> str: ...
    def model(self, name: str, version: int | str = "") -> ServedModel: ...
    def load(self, name: str, config: ModelConfig | None = None) -> None: ...
    def unload(self, name: str) -> None: ...
    def config(self, name: str) -> ModelConfig: ...
    def resets(self, name: str) -> int: ...


class ServedModel:
    """A handle on one model of a running server; made by ``server.model`` or ``server.add``."""

    def __init__(self, server: Host, name: str, version: str = "") -> None:
        self.server = server
        self._connection = server.connection
        self.name = name
        self.version = version
        self._text_side: tuple[str, Any, Any] = ("", None, None)

    def encode(
        self, texts: Sequence[str], seconds: Sequence[str] | None = None, *, prompt: str | None = None
    ) -> NDArray[np.float32]:
        """Vectors or logits of texts: they are tokenized here and computed by Triton.

        Parameters
        ----------
        texts
            Texts; longer ones than the model's limit are cut.
        seconds
            The second text of each pair, for a classifier.
        prompt
            Name of one of the model's prompts; None takes the default one, an empty string none.

        Returns
        -------
        float32 array ``[n, dimension]``
            In the order of the texts.

        Raises
        ------
        TextError
            A text that cannot be tokenized.
        RequestError
            The model takes no pairs, or Triton refused or lost a request.
        """
        rows = self.tokenize(texts, seconds, prompt=prompt)
        tokenizer = self._text_side[1]
        size = max(1, self.config.max_batch_size)
        batches = (rows.take(np.arange(i, min(i + size, len(rows)))) for i in range(0, len(rows), size))
        parts = [self.infer(*batch.padded(tokenizer.pad_id)) for batch in batches]
        return np.concatenate([np.empty((0, self.config.outputs[0].dims[-1]), dtype=np.float32), *parts])

    def classify(self, texts: Sequence[str], seconds: Sequence[str] | None = None) -> list[dict[str, float]]:
        """Scores of a classifier's labels, as a dictionary per text or pair with the highest score first.

        They are those of transformers' pipeline and of ``CrossEncoder.predict``. Labels of the same name carry their
        index: ``"a", "a (1)"``. A model without labels is a `RequestError`.
        """
        logits, manifest = self.encode(texts, seconds), self._text_side[2]
        if not manifest.labels:
            raise RequestError(f"{self.name} is no classifier.", seen=manifest.output_name, fix=".encode(texts)")
        names = unique_labels(manifest.labels)
        scores = to_scores(logits, manifest.activation)
        return [{names[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in scores]

    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[False] = False, stop: str | Sequence[str] = (), **options: Any
    ) -> str: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[True], stop: str | Sequence[str] = (), **options: Any
    ) -> Iterator[str]: ...
    def generate(
        self, prompt: Prompt, *, stream: bool = False, stop: str | Sequence[str] = (), **options: Any
    ) -> str | Iterator[str]:
        """Continue a text, or answer a chat.

        Parameters
        ----------
        prompt
            A text to continue, or messages with ``role`` and ``content``.
        stream
            Give an iterator over pieces of the text as they come; to leave it early cancels the request.
        stop
            Strings before which the text ends.
        options
            Fields of `accel_lib.generate.Sampling`; ``max_tokens`` is the rest of the context without one.

        Raises
        ------
        RequestError
            The model does not generate, or Triton or the engine refused or lost the request.
        TextError
            The prompt cannot be tokenized, or the chat template refuses the messages.

        Examples
        --------
        >>> server.model("generation").generate("The capital of France is", max_tokens=5)  # doctest: +SKIP
        """
        from accel_lib.triton.generation_client import Target, generate

        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        target = Target(
            name=self.name,
            version=self.version,
            folder=self.artifact_folder,
            grpc_url=self.server.grpc_url,
            batched=self.config.max_batch_size > 0,
        )
        pieces = generate(target, prompt, stop=stops, options=options)
        return pieces if stream else "".join(pieces)

    def rerank(self, query: str, passages: Sequence[str], *, top_n: int | None = None) -> list[RankedPassage]:
        """Rank passages for a query, with a reranker: a cross-encoder with one logit, or ``ensure("rerank")``.

        Parameters
        ----------
        query, passages
            Each passage is read beside the query; what is too long together is cut.
        top_n
            Return that many; None returns all.

        Returns
        -------
        list of RankedPassage
            The best first: ``index``, ``logit``, ``score`` (the logit's sigmoid) and ``text``.

        Raises
        ------
        RequestError
            The model is no reranker, or Triton refused or lost a request.
        TextError
            A text that cannot be tokenized.
        """
        if self.config.outputs[0].dims[-1] != 1:
            outputs = f"{self.config.outputs[0].name} of {self.config.outputs[0].dims[-1]} numbers"
            fix = 'serve one: accel.ensure("rerank"), or a cross-encoder with one label'
            raise RequestError(f"{self.name} is no reranker.", seen=outputs, fix=fix)
        return ranked(passages, self.encode([query] * len(passages), passages))[:top_n]

    def infer(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        *,
        timeout_s: float | None = None,
        priority: int = 0,
        protocol: Literal["grpc", "http"] = "grpc",
    ) -> NDArray[np.float32]:
        """Send one request of token ids.

        Parameters
        ----------
        input_ids, attention_mask, token_type_ids
            int64 ``[rows, tokens]``; without a mask every id is a token. A model that tells the texts of a pair apart
            takes segment ids too; without them they are zeros, which is right for single texts.
        timeout_s
            How long to wait for the response; None has no limit.
        priority
            1 is served first where the model has priority levels; 0 is the model's default.

        Returns
        -------
        float32 array ``[rows, dimension]``

        Raises
        ------
        RequestError
            The arrays are not rows of whole numbers, or Triton refused, lost or did not respond to the request.
        """
        ids = _rows("input_ids", input_ids)
        mask = np.ones_like(ids) if attention_mask is None else _rows("attention_mask", attention_mask)
        segments = None if token_type_ids is None else _rows(SEGMENTS, token_type_ids)
        module = require(f"tritonclient.{protocol}", extra="triton")
        try:
            config = self.config
        except ServerError as error:  # it was removed from the repository
            raise request_error(self.name, f"unknown model: {error.seen}") from error
        tensors = by_name([spec.name for spec in config.inputs], (ids, mask, segments))
        inputs = [module.InferInput(name, array.shape, "INT64") for name, array in tensors.items()]
        for tensor, array in zip(inputs, tensors.values(), strict=True):
            tensor.set_data_from_numpy(array)
        with _translated(self.name):
            if protocol == "grpc" and timeout_s is not None:
                answer = self._infer_within(timeout_s, inputs, priority)
            else:
                http = protocol == "http"
                client = self._connection.http(timeout_s or _HTTP_TIMEOUT_S) if http else self._connection.grpc
                answer = client.infer(self.name, inputs, self.version, priority=priority)
        output: NDArray[np.float32] = answer.as_numpy(config.outputs[0].name)
        return output

    def _infer_within(self, timeout_s: float, inputs: list[Any], priority: int) -> Any:
        """Wait for the response so long; afterwards it is left, as in `accel_lib.triton.calls`."""
        answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        client = self._connection.grpc
        client.async_infer(
            self.name, inputs, lambda result, error: answers.put((result, error)), self.version, priority=priority
        )
        try:
            result, error = answers.get(timeout=timeout_s)
        except queue.Empty:
            raise request_error(self.name, "Deadline Exceeded") from None
        if error:
            raise error
        return result

    def configure(self, **settings: Any) -> ModelConfig:
        """Change settings of the running model, as `ModelConfig` names them; files stay as they are.

        The model is loaded again beside the old one, which responds until then and stays if this fails. Statistics
        start from zero.

        Raises
        ------
        ServerError
            There is no such setting, or Triton refused the configuration.

        Examples
        --------
        >>> mine.configure(max_queue_delay_us=2_000, instance_count=2)  # doctest: +SKIP
        """
        config = self.config.replace(**settings)
        if config != self.config:
            self.server.load(self.name, config)
        return config

    def tokenize(
        self, texts: Sequence[str], seconds: Sequence[str] | None = None, *, prompt: str | None = None
    ) -> Ragged:
        """Token ids of texts or pairs as `encode` sends them, one row per text, without padding."""
        from accel_lib.models.tokenizer import Tokenizer, prompt_text

        folder = self.artifact_folder
        if not (folder / MANIFEST_FILE).is_file():
            raise RequestError(
                f"{self.name} has no tokenizer in the repository.",
                seen=f"no {ARTIFACT_FOLDER}/{MANIFEST_FILE}",
                fix="send token ids: .infer(input_ids)",
            )
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        if text != self._text_side[0]:  # first use, or the version was replaced
            manifest = Manifest.from_json(text)
            segments = SEGMENTS in manifest.inputs
            tokenizer = Tokenizer.load(folder / TOKENIZER_FILE, manifest.max_length, segments=segments)
            self._text_side = (text, tokenizer, manifest)
        _, tokenizer, manifest = self._text_side
        if seconds is not None and not (manifest.pairs and manifest.labels):
            raise RequestError(
                f"{self.name} takes single texts, not pairs.",
                seen=f"{manifest.model}, a model for {manifest.task}",
                fix="serve a cross-encoder; one that an older version converted, convert again: accel.to_onnx(model)",
            )
        asked = prompt_text(manifest.prompts, manifest.default_prompt, prompt)
        rows: Ragged = tokenizer.encode_with_lengths(texts, prompt=asked, seconds=seconds)[0]
        return rows

    @property
    def artifact(self) -> Artifact:
        """The artifact of the version that responds; raises `ArtifactError` if the repository has no whole one."""
        return Artifact.load(self.artifact_folder)

    @contextlib.contextmanager
    def own_config(self) -> Iterator[ModelConfig]:
        """Restore the present configuration at the end of the context, also after an error."""
        own = self.config
        try:
            yield own
        finally:
            with contextlib.suppress(AccelError):  # the first error is the one to see
                if self.config != own:
                    self.server.load(self.name, own)

    @property
    def config(self) -> ModelConfig:
        """The configuration the model was last loaded with."""
        return self.server.config(self.name)

    def statistics(self) -> Statistics:
        """What Triton has counted since the model was loaded."""
        counted = self._connection.statistics(self.name, self.version)
        return Statistics.from_protobuf(counted, self.server.resets(self.name))

    def wait_for_stable_statistics(self) -> Statistics:
        """`statistics` once they stop changing: Triton counts a request just after it has sent the response."""
        counted, began = self.statistics(), time.monotonic()
        since = began
        while time.monotonic() - since < _STABLE_S and time.monotonic() - began < _STABLE_TIMEOUT_S:
            time.sleep(0.02)
            if (now := self.statistics()) != counted:
                counted, since = now, time.monotonic()
        return counted

    def timeline(self, text: str, *, repeats: int = 20) -> Timeline:
        """Where the time of one request goes: the mean of `repeats`, one after the other, on an idle model."""
        self.encode([text])
        before, started = self.wait_for_stable_statistics(), time.perf_counter()
        rows = [self.tokenize([text]) for _ in range(repeats)]
        tokenized = time.perf_counter()
        for row in rows:
            self.infer(row.ids[None])
        ended, counted = time.perf_counter(), self.wait_for_stable_statistics() - before
        served = {f"{name}_ms": counted.per_request_ms(name) for name in STAGES}
        return Timeline(
            tokenize_ms=(tokenized - started) * 1e3 / repeats,
            transport_ms=max((ended - tokenized) * 1e3 / repeats - sum(served.values()), 0.0),
            **served,
        )

    def export(self, path: str | Path, *measured: object) -> Path:
        """Write this model as a zip file, and return its path.

        It holds a model repository with this version, its artifact and its present configuration, and a README that
        says how to serve it, how to rebuild it, and what was measured.

        Parameters
        ----------
        path
            The file to write; an earlier export is replaced.
        measured
            Results to put into the README as they print, such as a comparison and a load run.

        Raises
        ------
        ArtifactError, ServerError
            The artifact is damaged or not validated, or `path` is a folder.

        Examples
        --------
        >>> mine.export("export.zip", comparison, run)  # doctest: +SKIP
        """
        from accel_lib.triton.export import write_export

        version = int(self.artifact_folder.parent.name)
        return write_export(path, self.artifact, self.config, measured, version=version)

    def __repr__(self) -> str:
        which = f"version {self.version}" if self.version else "(newest version)"
        return f"{self.name} {which}, on a Triton that serves {self.server}"

    @property
    def artifact_folder(self) -> Path:
        """The folder of `artifact`."""
        model = self.server.repository / self.name
        return model / (self.version or str(versions(model)[-1])) / ARTIFACT_FOLDER


def _rows(name: str, values: ArrayLike) -> NDArray[np.int64]:
    with contextlib.suppress(ValueError):  # NumPy's word on rows of different lengths
        array = np.asarray(values)
        if array.dtype.kind in "iu" and array.ndim == 2 and len(array):
            return np.ascontiguousarray(array, dtype=np.int64)
        values = f"{array.dtype} {list(array.shape)}"
    raise RequestError(
        f"{name} holds one or more rows of whole numbers, padded to one length.",
        seen=values,
        fix="send int64 arrays [rows, tokens], or texts: .encode(texts)",
    )


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what tritonclient and its transports raise into `RequestError`."""
    exceptions = require("tritonclient.utils", extra="triton")
    try:
        yield
    except (exceptions.InferenceServerException, OSError) as error:
        raise request_error(name, str(error) or repr(error)) from error
