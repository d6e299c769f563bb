"""The record of a training or a test by ``cnnbench fit`` and ``cnnbench test``, like the records of `bench`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer

from cnnbench import references
from cnnbench.benchmark.training import TrainingHistory, calibration_figures, run_environment, weights_facts
from cnnbench.confusion import accuracy
from cnnbench.counting import CONVENTION
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError
from cnnbench.files import reason
from cnnbench.measures import Subject, Taken, take_all
from cnnbench.network import name_of
from cnnbench.predictions import write_predictions
from cnnbench.record import Record, load_records, located, write_record
from cnnbench.schemas import check_record
from cnnbench.training.classifier import ImageClassifier

Tested = Literal["last", "best", "none"]
"""Weights that `fit` tests at its end."""
FINAL = "final.ckpt"
"""File with the weights after a training, if they are not those of ``last.ckpt``, as with averages of the weights."""


_NO_SEED = "the training has no seed that is known, and a record names its seed"


@dataclass
class Recording:
    """What the records of a run are made from.

    Attributes:
        trainer: Trainer of the run, whose folder the records are written into.
        model: Network.
        data: Data of the network.
        say: Function that prints a line.
    """

    trainer: L.Trainer
    model: ImageClassifier
    data: ImageDataModule
    say: Callable[[str], None]

    @classmethod
    def of(cls, trainer: L.Trainer, model: Any, data: Any, say: Callable[[str], None]) -> Recording | _NoRecording:
        """Return the recording of a run; one without effect for modules of other kinds, which count no confusions."""
        if isinstance(model, ImageClassifier) and isinstance(data, ImageDataModule):
            return cls(trainer, model, data, say)
        return _NoRecording(say)

    @property
    def folder(self) -> Path:
        """Return the run folder."""
        return Path(self.trainer.default_root_dir)

    def of_training(self, history: TrainingHistory, asked: Tested, last: Path | None, choices: str) -> Record | None:
        """Test the network after its training, and write the record of both; a line says why there is none.

        Args:
            history: Callback that followed the training.
            asked: Weights to test.
            last: Path of the checkpoint of the last step; None if the run keeps none.
            choices: Words on the number format and the memory format.

        Returns:
            The record; None if there is none, and in all processes but the first.
        """
        seed = self.model.training_seed
        if seed is None:
            self.say(f"no record: {_NO_SEED}")
            return None
        best = self._best(asked)
        try:
            # The facts are taken before the weights of the best checkpoint replace those of the last step.
            training = history.facts(self.trainer, self.model, self.data.describe())
            weights = self._load(best) if best is not None else self._file_of(last)
            # The first process alone knows the run folder, and writes the record.
            if weights is not None and self.trainer.is_global_zero:
                training |= weights_facts(weights, self.folder)
            config = self._settings() | {"precision_reason": choices, "learning_rate": history.learning_rate}
            record = self._record(seed, config, training)
        except UserError as error:
            self.say(f"no record: {error}")
            return None
        if asked != "none":
            which = "last" if best is None else "best"
            try:
                record = self._tested(replace(record, config={**config, "tested": which}), weights, history)
            except UserError:  # such as a test image that cannot be read; the training is a record all the same
                self._write(record)
                raise
        return self._write(record)

    def of_test(self, checkpoint: Path) -> Record | None:
        """Write the record of the test that the Trainer has run; a line says why there is none.

        Args:
            checkpoint: Checkpoint that was tested. If a record beside it describes its weights, the record of the test
                has the facts about their training too.

        Returns:
            The record; None if there is none, and in all processes but the first.

        Raises:
            UserError: A record beside the checkpoint is damaged.
        """
        before = record_of_weights(checkpoint)
        config: dict[str, Any] = self._settings()
        training: dict[str, Any] = {}
        seed = self.model.training_seed
        if checkpoint.resolve().parent == references.FOLDER.resolve():
            seed = references.REFERENCE_SEED
        # With other data, such as another split, the facts about the training would contradict those about the data.
        if before is not None and before.data == self.data.describe():
            same_now = {key: config[key] for key in ("precision", "test_views")}
            config, training, seed = before.config | same_now, dict(before.training), before.seed
            # The test may average over other views of an image than the test after the training did.
            training["recipe"] = training["recipe"].partition(", tested with")[0] + self.model.test_words
        if seed is None:
            self.say(f"no record: {_NO_SEED}")
            return None
        try:
            record = self._with_test(self._record(seed, config | {"command": "test"}, training))
        except UserError as error:
            self.say(f"no record: {error}")
            return None
        return self._write(record)

    def _tested(self, record: Record, weights: Path | None, history: TrainingHistory) -> Record:
        """Test the network, and return a record with the outcome; one without a test if that sees too few images."""
        words = "weights of the last step"
        if weights is not None:
            words = f"weights of {weights.name}"
        elif history.curve.diverged:
            words = "weights of a training that diverged"
        self.trainer.test(self.model, datamodule=self.data, verbose=False)
        try:
            return self._with_test(record, f", {words}")
        except UserError as error:
            self.say(f"the record has no test: {error}")
            return replace(record, config={key: value for key, value in record.config.items() if key != "tested"})

    def _best(self, asked: Tested) -> Path | None:
        """Return the best checkpoint if its weights are to be tested; None for the weights of the last step."""
        if asked != "best":
            return None
        best = Path(getattr(self.trainer.checkpoint_callback, "best_model_path", ""))
        if best.is_file():
            return best
        self.say("no best checkpoint was written, so the weights of the last step are tested")
        return None

    def _load(self, path: Path) -> Path:
        """Load the weights of a checkpoint into the network, and return the path.

        Lightning would load them with the callbacks of the training, and one that averages weights then puts the
        weights of the last step in the place of the averages.
        """
        self.model.load_state_dict(self._weights_in(path))
        return path

    def _weights_in(self, path: Path) -> Mapping[str, torch.Tensor]:
        """Return the weights in a checkpoint, which a plugin of the user's may have written in a way of its own."""
        return self.trainer.strategy.load_checkpoint(path)["state_dict"]

    def _file_of(self, last: Path | None) -> Path | None:
        """Return a checkpoint with exactly the weights of the network; None if the run keeps no checkpoints.

        At the end of a training a callback may give the network other weights than those of the last checkpoint. These
        are then saved as ``final.ckpt``.

        Args:
            last: Path of the checkpoint of the last step; None if the run keeps none.
        """
        if last is None:
            return None
        is_same = last.is_file() and self._has_weights(self._weights_in(last))
        # All processes save a checkpoint together, also if only the first one can read the file.
        if self.trainer.strategy.broadcast(is_same):
            return last
        path = last.with_name(FINAL)
        self.trainer.save_checkpoint(path, weights_only=True)
        self.say(f"weights after the training, which are not those of {last.name}: {path}")
        return path

    def _has_weights(self, stored: Mapping[str, torch.Tensor]) -> bool:
        """Return whether the weights of the network, with its running statistics, are exactly these."""
        own = self.model.state_dict()
        if own.keys() != stored.keys():
            return False
        return all(torch.equal(value.cpu(), stored[name].cpu()) for name, value in own.items())

    def _record(self, seed: int, config: dict[str, Any], training: dict[str, Any]) -> Record:
        """Return a record of the network with its parameters and multiply-adds."""
        data, device = self.data, self.trainer.strategy.root_device
        name, shape = name_of(self.model), (data.in_channels, data.image_size, data.image_size)
        subject = Subject(name, self.model, shape, data, str(device), str(self.trainer.precision))
        taken = take_all(("complexity",), subject, trained=False)
        return Record(
            model=name,
            data=data.describe(),
            seed=seed,
            status="ok",
            config=config,
            environment=run_environment(device),
            measures=dict(taken.figures),
            skipped=dict(taken.skipped),
            training=training,
        )

    def _settings(self) -> dict[str, Any]:
        """Return the settings of the run for its record."""
        trainer, facts = self.trainer, self.data.describe()
        timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
        seconds = math.inf
        if timer is not None:
            seconds = timer.time_elapsed() + (timer.time_remaining() or 0.0)
        # Lightning has -1 and None for no limit.
        epochs, steps = trainer.max_epochs or -1, trainer.max_steps
        return {
            "command": "fit",
            "budget_s": round(seconds, 3) if math.isfinite(seconds) else None,
            "epochs": epochs if epochs > 0 else None,
            "max_steps": steps if steps > 0 else None,
            "device": str(trainer.strategy.root_device),
            "precision": str(trainer.precision),
            "batch_size": facts["batch_size"],
            "images_per_step": facts["batch_size"] * trainer.world_size * trainer.accumulate_grad_batches,
            "eval_batch_size": min(self.data.eval_batch_size, facts["test_images"]),
            "memory_format": str(self.model.memory_format).removeprefix("torch."),
            "test_views": self.model.test_views,
            "macs_convention": CONVENTION,
        }

    def _with_test(self, record: Record, weights: str = "") -> Record:
        """Return a record with the outcome of the last test of the network, and print the accuracy.

        Args:
            record: Record without the test.
            weights: Words on the weights that were tested, which end the printed line.

        Raises:
            UserError: The test saw a part of the test set only, whose accuracy would not compare with others.
        """
        matrix = self.model.confusion_counts("test")
        seen, images = sum(map(sum, matrix)), record.data["test_images"]
        if seen != images:
            raise UserError(f"the test saw {seen:,} of {images:,} images")
        found = accuracy(matrix)
        low, high = found["test_accuracy_low"], found["test_accuracy_high"]
        words = f"{found['test_accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})"
        self.say(f"test accuracy {words}, {images:,} images{weights}")
        calibrated = Taken({}, {"ece": "measured in one process only"})
        if self.trainer.world_size == 1:
            calibrated = calibration_figures(self.model)
        measures = {**record.measures, **found, **calibrated.figures}
        skipped = {**record.skipped, **calibrated.skipped}
        return replace(record, confusion_matrix=matrix, measures=measures, skipped=skipped)

    def _write(self, record: Record) -> Record | None:
        """Write a record into the run folder, with the predicted classes of its test, and print its path.

        Raises:
            UserError: The record contradicts itself, or a file cannot be written.
        """
        if not self.trainer.is_global_zero:
            return None
        check_record(asdict(record), "the record of this run")
        path = self.folder / "records" / f"{record.key}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, record)
            # With several processes, each knows the answers to its own images only.
            if record.confusion_matrix is not None and self.trainer.world_size == 1:
                predictions = self.folder / "predictions" / f"{record.key}.npz"
                write_predictions(predictions, self.model.test_predictions(), record.data["num_classes"])
        except OSError as error:
            raise UserError(f"record '{path}' cannot be written: {reason(error)}") from error
        self.say(f"record:     {path}")
        return located(record, path)


@dataclass
class _NoRecording:
    """Recording of a run whose network or data are of a kind that the package cannot describe.

    Attributes:
        say: Function that prints a line.
    """

    say: Callable[[str], None]

    def of_training(self, *_: Any) -> None:
        self.say("no test and no record: they are for networks and data of cnnbench")

    def of_test(self, *_: Any) -> None:
        self.say("no record: it is for networks and data of cnnbench")


def record_of_weights(checkpoint: Path) -> Record | None:
    """Return the record of the training that wrote a checkpoint, or None if there is none beside it.

    Args:
        checkpoint: Checkpoint in a subfolder of a run folder of `fit` or `bench`.

    Raises:
        UserError: A record beside the checkpoint is damaged.
    """
    run = checkpoint.parent.parent
    files = sorted((run / "records").glob("*.json"))
    if not files:
        return None
    found = weights_facts(checkpoint, run)
    for record in load_records(files):
        # The hash tells whether the file still holds the weights that the record describes.
        if {key: record.training.get(key) for key in found} == found:
            return record
    return None
