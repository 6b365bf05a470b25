"""The configuration of a release: one YAML file, or the same as flags, into frozen models that refuse unknown keys.

Each leaf field carries its flag name, so that ``jobs/cli.py`` builds the command line from this file alone. ``public``
says what of it may travel with a release: no path, URL, address or key ever does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from facecrowd.pipeline import presets
from facecrowd.pipeline.errors import ConfigError, reason

PIXEL_METHODS = ("blur", "pixelate", "mask", "noise")
"""The baselines: they alter each original on its own and guarantee nothing."""

CLASS_METHODS = ("k-same", "k-same-select")
"""Those that show a face of the whole class."""

TRANSLATING_METHODS = {"translation": "stargan", "identity-preserving": "stargan-identity"}
"""Those that alter attributes of each original, with the translator that each has by default."""

CLOAK = "none"
"""The method that shows each original as it is: what hides it is the perturbation alone."""

PERTURBATIONS = {"universal": 8.0, "tip-im": 12.0, "advnoise": 12.0}
"""What perturbs faces against recognisers, with the bound that each has by default, in grey levels."""

RANDOMISING_PLANNERS = ("ppas", "ppas-verified")

SURROGATE: Literal["latent", "average"] = "latent"
"""What a class shows by default."""

GENERATED_SIZES = (128, 256, 512, 1024)
"""Sides of the pictures that the generator makes, in px."""

Kept = Literal["pose", "expression", "lighting"]


def option(default: Any, description: str, flag: str | None = None, private: bool = False, **limits: Any) -> Any:
    """A config field that is a flag too. ``private`` keeps it out of released configs."""
    extra: dict[str, Any] = {"flag": flag, "private": private}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def _lists(data: Any, *names: str) -> Any:
    """Of a section as it was given, what is a comma-separated list as one."""
    if not isinstance(data, dict):
        return data
    texts = {name: data[name] for name in names if isinstance(data.get(name), str)}
    return {**data, **{n: [part.strip() for part in text.split(",") if part.strip()] for n, text in texts.items()}}


def _or(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Input(Section):
    path: str | None = option(
        None,
        "Folder of photos, or a Parquet/CSV manifest with a column of their paths; local or any fsspec URL.",
        flag="input",
        private=True,
    )
    subjects: Literal["auto", "folder", "column", "clusters"] = option(
        "auto",
        "Where the person comes from: the first folder below the input, a manifest column, or clusters of embeddings "
        "(auto: the column if named, else folders if there are at least two, else clusters).",
    )
    path_column: str = option(
        "path", "Manifest column that holds the photo's path, relative to the manifest.", private=True
    )
    subject_column: str | None = option(None, "Manifest column that names the person.", private=True)
    attributes: str | None = option(
        None, "Parquet/CSV table of attributes, joined to photos by --attributes-key.", private=True
    )
    attributes_key: str = option(
        "image_id",
        "Column of the attribute table that holds the photo's file name or its path relative to the input.",
        private=True,
    )
    cluster_threshold: float = option(
        0.36,
        "Cosine similarity from which two faces are one person, for subjects: clusters (0.36 is for the default "
        "recogniser; others have scales of their own).",
        gt=-1,
        lt=1,
    )
    same_person: float = option(
        0.5,
        "Cosine similarity of two named people's mean faces from which they count as one person (1: only by name).",
        gt=0,
        le=1,
    )


class Workspace(Section):
    path: str | None = option(
        None,
        "Private folder of the run (key, crops, link to the sources); default: OUTPUT.workspace beside the release.",
        flag="workspace",
        private=True,
    )
    catalog: str | None = option(
        None, "Name of a PyIceberg catalog configured outside (default: SQLite in the workspace).", private=True
    )


class Detect(Section):
    detector: str = option("scrfd-500m", "Face detector: scrfd-500m, centerface, an insightface pack or an .onnx file.")
    models: str | None = option(
        None, "Folder of model files, or an insightface root, looked through before anything is fetched.", private=True
    )
    recogniser: str = option(
        "arcface-mobilefacenet", "Face recogniser: a registry name, an insightface pack or an .onnx file."
    )
    detection_size: int = option(
        0,
        "Side of the square the photo is scaled into for detection, in px (0: the photo's own size, at most 640).",
        ge=0,
    )
    threshold: float = option(0.5, "Detection score from which a face is a face.", gt=0, lt=1, flag="det-threshold")
    cover_threshold: float = option(
        0.3, "Score from which a possible face is at least covered in photo output.", gt=0, lt=1
    )
    min_face: int = option(20, "Shorter side in px below which a face is too small to use.", ge=1)
    crop_size: int = option(256, "Side of the aligned crop, in px.", ge=64, le=1024)
    max_pixels: int = option(100_000_000, "Photos with more pixels are refused before they are decoded.", ge=1)

    @model_validator(mode="after")
    def covers_what_it_finds(self) -> Detect:
        if self.cover_threshold > self.threshold:
            if "cover_threshold" in self.model_fields_set:
                raise ValueError(
                    f"cover_threshold {self.cover_threshold:g} is above threshold {self.threshold:g}, "
                    "so faces would be released that are not even covered; lower it"
                )
            object.__setattr__(self, "cover_threshold", self.threshold)
        return self


class Attributes(Section):
    predictor: str = option(
        "auto",
        "What infers facial attributes from the photos: a shipped predictor, a .safetensors file or none (auto: the "
        "shipped one, for what the policy names and the input does not bring; a name: for all, and the audit says "
        "where it disagrees with the input).",
    )
    judge: str = option(
        "auto",
        "What reads the attributes of released pixels: as predictor, but another one (auto: the shipped judge).",
    )
    unknown_margin: float = option(
        0.0,
        "A predicted quasi-identifier is unknown within this share of the way from the threshold to 0 and to 1.",
        ge=0,
        lt=1,
    )


class Diversity(Section):
    kind: Literal["distinct", "entropy", "recursive"] = "distinct"
    value: float = Field(gt=0)
    c: float | None = Field(default=None, gt=0)


class Closeness(Section):
    value: float = Field(gt=0, le=1)
    ground: Literal["hamming", "equal", "ordered"] = "hamming"


class Policy(Section):
    subject: str = option(
        "subject_id", "Column that names the person, the unit of k (of a manifest: input.subject_column).", private=True
    )
    quasi_identifiers: tuple[str, ...] = option(
        (),
        "Attributes an adversary may know (comma-separated), or the presets anonymousnet and five-parts; released as "
        "one vector per subject.",
    )
    sensitive: tuple[str, ...] = option((), "Attributes that must not be inferred from a class (comma-separated).")
    k: int | None = option(
        None, "Distinct subjects that share what is released (default 5 for k-same and translation).", ge=2
    )
    l: Diversity | None = Field(  # noqa: E741 - the field's word
        default=None, description="l-diversity of the sensitive attributes.", json_schema_extra={"flag": "l"}
    )
    t: Closeness | None = Field(
        default=None, description="t-closeness of the sensitive attributes.", json_schema_extra={"flag": "t"}
    )
    epsilon: float | None = option(None, "Total privacy loss per subject of randomising the released attributes.", gt=0)
    max_suppression: float = option(0.02, "Largest share of subjects that may be left out.", ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def presets_named(cls, data: Any) -> Any:
        given = data.get("quasi_identifiers") if isinstance(data, dict) else None
        given = [given] if given in presets.PRESETS else given
        if not isinstance(given, list | tuple) or not set(presets.PRESETS) & {n for n in given if isinstance(n, str)}:
            return data
        others = [data.get("subject")]
        for role in ("sensitive", "identifiers", "insensitive"):
            others += data[role] if isinstance(data.get(role), list | tuple) else []
        return {**data, "quasi_identifiers": presets.expanded(given, others)}

    @model_validator(mode="after")
    def roles_agree(self) -> Policy:
        both = sorted(set(self.quasi_identifiers) & set(self.sensitive))
        if both:
            raise ValueError(f"{', '.join(both)}: an attribute is either a quasi-identifier or sensitive, not both")
        if (self.l or self.t) and not self.sensitive:
            raise ValueError("l and t are about sensitive attributes, and policy.sensitive names none")
        return self

    @model_serializer(mode="wrap")
    def as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A release takes the subject from here only where it was given, and so must one read back."""
        data: dict[str, Any] = handler(self)
        if type(self) is Policy and "subject" not in self.model_fields_set:
            data.pop("subject", None)
        return data


EVERY = "*"
"""Stands for all columns that have no other role."""


class TableCloseness(Closeness):
    ground: Literal["hamming", "equal", "ordered", "hierarchy"] = "hamming"  # type: ignore[assignment] # one more


class TablePolicy(Policy):
    """A policy for ``audit --table`` and ``plan``: the same keys, and what a table alone can be asked."""

    identifiers: tuple[str, ...] = Field(default=(), description="Columns that name people; never released.")
    insensitive: tuple[str, ...] = Field(default=(), description="Columns that play no role.")
    per_subject: bool = Field(
        default=True, description="Release one vector per subject, the majority of their rows' values."
    )
    kinds: dict[str, Literal["binary", "categorical", "ordered", "numeric"]] = Field(
        default={}, description="What kind of attribute a quasi-identifier is, where its values do not say."
    )
    hierarchies: dict[str, str] = Field(
        default={}, description="CSV file of each attribute's value hierarchy; paths as seen from the policy file."
    )
    reference: str | None = Field(
        default=None,
        description="Parquet/CSV table of the sensitive attributes with their public 'share', for t-closeness.",
    )
    t: TableCloseness | None = None

    @model_validator(mode="before")
    @classmethod
    def all_others(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("quasi_identifiers") in ("all", ["all"], ("all",)):
            return {**data, "quasi_identifiers": (EVERY,)}
        return data

    @model_validator(mode="after")
    def one_role_each(self) -> TablePolicy:
        roles = {
            "the subject": (self.subject,),
            "a quasi-identifier": self.quasi_identifiers,
            "sensitive": self.sensitive,
            "an identifier": self.identifiers,
            "insensitive": self.insensitive,
        }
        seen: dict[str, str] = {}
        for role, names in roles.items():
            for name in names:
                if name in seen:
                    what = "named twice as" if seen[name] == role else f"{seen[name]} and"
                    raise ValueError(f"{name} is {what} {role}; give it one role")
                seen[name] = role
        known = (*self.quasi_identifiers, *self.sensitive)
        for key, given in (("kinds", set(self.kinds)), ("hierarchies", set(self.hierarchies))):
            if EVERY not in known and given - set(known):
                unknown = min(given - set(known))
                raise ValueError(f"{key} names {unknown}, which is neither a quasi-identifier nor sensitive")
        return self


class Method(Section):
    name: Literal[
        "k-same",
        "k-same-select",
        "translation",
        "identity-preserving",
        "deepblur",
        "inpaint",
        "blur",
        "pixelate",
        "mask",
        "noise",
        "none",
    ] = option("k-same", "How a face is replaced, or altered (none: only perturbed).", flag="method")
    surrogate: Literal["latent", "average"] = option(
        SURROGATE,
        "k-same: what a class shows: a generated face, at the mean of its people's latents, or the mean of pixels.",
    )
    surrogates: int = option(
        1, "k-same: faces for each class; which of them stands for a photo, the run key draws.", ge=1
    )
    truncation: float = option(
        1.0, "k-same: how far a class mean is from the generator's average face, 0 to 1 (psi).", ge=0, le=1
    )
    select: str | None = option(
        None, "k-same-select: the attribute that all people of a class share, so that it survives."
    )
    keep: tuple[Kept, ...] = option(
        (),
        "k-same: what each face keeps of its own photo (pose, expression, lighting; comma-separated). The bound of "
        "1/k then holds no longer.",
    )
    surrogates_per_subject: int | None = option(
        None,
        "k-same: release this many images of every person, so that photo counts tell nothing (default: as many as "
        "each has photos).",
        ge=1,
    )
    translator: str | None = option(
        None,
        "translation, identity-preserving: what alters faces: a shipped StarGAN (stargan, stargan-identity), a "
        ".safetensors file, or latent, a latent search and attribute directions (default: stargan; for "
        "identity-preserving stargan-identity).",
    )
    passes: int = option(
        2,
        "translation, identity-preserving: passes at most; a further one only where the predictor says that the "
        "target was missed.",
        ge=1,
        le=16,
    )
    planner: Literal["mondrian", "suppress", "ppas", "ppas-verified"] = option(
        "ppas-verified",
        "translation: what chooses the attributes of each person: generalisation, full-domain suppression, or "
        "AnonymousNet's selection as printed (which may miss the policy) or verified.",
    )
    parts: Literal["adaptive", "1", "2", "3", "4"] = option(
        "adaptive",
        "identity-preserving: how many parts of a face are obfuscated, those least tied to its identity (adaptive: "
        "those below part_threshold).",
    )
    part_threshold: float = option(
        1.0,
        "identity-preserving: activation of a part below which it is obfuscated, in units of the whole face's mean.",
        gt=0,
    )
    latent_sigma: float = option(
        1.0, "deepblur: sigma of the low-pass on the latent, 0.5 (close) to 100 (the average face).", ge=0.5, le=100
    )
    search_steps: int = option(10, "deepblur, inpaint, translation by latent: steps of the latent search.", ge=0)
    start: Literal["encoder", "mean"] = option(
        "encoder", "deepblur: where the search starts: the encoder's guess or the average face.", flag="search-start"
    )
    sigma: float = option(8.0, "blur: Gaussian sigma in px of a 256 px crop.", gt=0)
    blocks: int = option(12, "pixelate: blocks across the crop.", ge=1)
    mask: Literal["eyes", "face"] = option("eyes", "mask: what the black box covers.")
    gamma: float = option(0.5, "noise: share of pixels that are randomised.", ge=0, le=1)
    noise_sigma: float = option(64.0, "noise: standard deviation of the Gaussian, in grey levels of 255.", ge=0)
    invert: bool = option(True, "noise: randomised pixels become 255 - x plus noise instead of x plus noise.")

    @property
    def of_class(self) -> bool:
        """Whether a face of the whole class is shown."""
        return self.name in CLASS_METHODS

    @property
    def translated(self) -> bool:
        """Whether attributes of each original are altered."""
        return self.name in TRANSLATING_METHODS

    @property
    def keeps_identity(self) -> bool:
        """Whether recognisers are meant to match what is released."""
        return self.name == "identity-preserving"

    @property
    def generated(self) -> bool:
        """Whether the generator makes the faces."""
        latent = self.surrogate == "latent" if self.of_class else self.translator == "latent"
        return self.name in ("deepblur", "inpaint") or latent

    @property
    def neural(self) -> bool:
        """Whether networks make the faces, which a GPU does faster."""
        return self.generated or self.translated

    @property
    def shows_attributes(self) -> bool:
        """Whether faces are made to show the released attributes."""
        return self.name == "translation" or (self.of_class and self.generated)

    @property
    def drawn(self) -> bool:
        """Whether other draws make other faces."""
        several = self.of_class and self.generated and self.surrogates > 1
        return several or self.name in ("noise", "translation")

    @model_validator(mode="before")
    @classmethod
    def as_written(cls, data: Any) -> Any:
        data = _lists(data, "keep")
        if isinstance(data, dict) and type(data.get("parts")) is int:
            data = {**data, "parts": str(data["parts"])}
        return data

    @model_validator(mode="after")
    def fits_together(self) -> Method:
        if self.translated and self.translator is None:
            object.__setattr__(self, "translator", TRANSLATING_METHODS[self.name])
        if self.translator is not None and not self.translated:
            raise ValueError(f"translator is for {' and '.join(TRANSLATING_METHODS)}; the method is {self.name}")
        if (self.select is not None) != (self.name == "k-same-select"):
            raise ValueError(
                "k-same-select needs select, the attribute to cut classes within"
                if self.select is None
                else f"select is for k-same-select, and the method is {self.name}"
            )
        if self.surrogates > 1 or self.keep:
            what = "keep" if self.keep else "surrogates"
            if not self.of_class:
                raise ValueError(f"{what} is for k-same; {self.name} shows no faces of classes")
            if self.surrogate == "average":
                raise ValueError(f"{what} needs surrogate: latent; a mean of pixels is one face")
            if self.surrogates_per_subject:
                raise ValueError(
                    f"{what} and surrogates_per_subject contradict each other: copies of a face would show how many "
                    "photos its person has"
                )
        if self.of_class and self.surrogate == "average" and self.truncation != 1:
            raise ValueError("truncation needs surrogate: latent")
        if len(set(self.keep)) < len(self.keep):
            raise ValueError("keep names something twice")
        if self.name == "inpaint" and self.search_steps < 1:
            raise ValueError("search_steps: inpaint searches by at least 1 step")
        if self.name == "deepblur" and self.search_steps < 1 and self.start == "mean":
            raise ValueError("search_steps: without a step from the average face, every face would be the average face")
        return self


class Perturb(Section):
    """What is done to rendered faces, or to originals, against recognisers."""

    name: Literal["none", "universal", "tip-im", "advnoise"] = option(
        "none",
        "What perturbs the faces against recognisers, after they are rendered: one vector for all of them, a mask for "
        "each towards generated faces (tip-im), or away from itself (advnoise).",
        flag="perturb",
    )
    bound: float | None = option(
        None,
        "Grey levels by which a pixel may change (default: 8 for universal, else 12).",
        flag="perturb-bound",
        ge=1,
        le=255,
    )
    norm: Literal["linf", "l2"] = option(
        "linf",
        "Of what the bound is: the largest change of a face's values (linf), or their root mean square (l2).",
        flag="perturb-norm",
    )
    surrogates: tuple[str, ...] = option(
        (),
        "Recognisers that it is made against, by their gradients (comma-separated names or files; default: "
        "arcface-mobilefacenet, or none where perturb.attributes names what to fool).",
        flag="perturb-surrogates",
    )
    attributes: tuple[str, ...] = option(
        (),
        "universal: attributes that the steering predictor shall see otherwise (comma-separated, or a preset).",
        flag="perturb-attributes",
    )
    delta: float = option(
        0.0,
        "universal: passes over the sample end once all but this share of it is fooled (0: all ten are taken).",
        flag="perturb-delta",
        ge=0,
        lt=1,
    )
    sample: int = option(
        256, "universal: faces, drawn by the run key, that the vector is fitted on.", flag="perturb-sample", ge=2
    )
    steps: int = option(50, "tip-im, advnoise: steps (T).", flag="perturb-steps", ge=1)
    step: float = option(
        1.5, "tip-im, advnoise: length of a step (alpha), in grey levels.", flag="perturb-step", gt=0, le=255
    )
    targets: int = option(
        10,
        "tip-im: generated faces (K), drawn by the run key, that faces are taken towards.",
        flag="perturb-targets",
        ge=1,
    )
    gamma: float = option(
        0.0, "tip-im, advnoise: weight of looking natural (MMD over views of each face).", flag="perturb-gamma", ge=0
    )
    jpeg: bool = option(
        True, "Make it with the release's own JPEG quality in the loop, so that it survives it.", flag="perturb-jpeg"
    )

    @property
    def on(self) -> bool:
        """Whether anything is perturbed."""
        return self.name != "none"

    @model_validator(mode="before")
    @classmethod
    def as_written(cls, data: Any) -> Any:
        data = _lists(data, "surrogates", "attributes")
        given = data.get("attributes") if isinstance(data, dict) else None
        if isinstance(given, list | tuple) and set(presets.PRESETS) & {name for name in given if isinstance(name, str)}:
            return {**data, "attributes": presets.expanded(given, ())}
        return data

    @model_validator(mode="after")
    def fits_together(self) -> Perturb:
        masks = ("tip-im", "advnoise")
        of = {
            **dict.fromkeys(("bound", "norm", "surrogates", "jpeg"), tuple(PERTURBATIONS)),
            **dict.fromkeys(("attributes", "sample", "delta"), ("universal",)),
            **dict.fromkeys(("steps", "step", "gamma"), masks),
            "targets": ("tip-im",),
        }
        for leaf, names in of.items():
            if self.name not in names and getattr(self, leaf) != type(self).model_fields[leaf].default:
                raise ValueError(f"{leaf} is for {_or(names)}; perturb.name is {self.name}")
        for leaf in ("surrogates", "attributes"):
            if len(set(getattr(self, leaf))) < len(getattr(self, leaf)):
                raise ValueError(f"{leaf} names something twice")
        if strange := [name for name in self.attributes if name not in presets.predictable()]:
            raise ValueError(f"attributes: {strange[0]} cannot be predicted ({presets.hint(predicted=True)})")
        if self.on and self.bound is None:
            object.__setattr__(self, "bound", PERTURBATIONS[self.name])
        if self.on and not self.surrogates and not self.attributes:
            object.__setattr__(self, "surrogates", ("arcface-mobilefacenet",))
        return self


class Verify(Section):
    """What the released pixels must hold up to, measured by networks that took no part in making them."""

    recognition: float | None = option(
        None,
        "Largest rank 1 per subject, against the originals, that may be measured; what exceeds it is rendered anew or "
        "left out (default: measured, and nothing left out for it).",
        flag="verify-recognition",
        ge=0,
        le=1,
    )
    attributes: float | None = option(
        None,
        "Largest share of the planned values that the pixels may not show, the judge's own errors taken off.",
        flag="verify-attributes",
        ge=0,
        le=1,
    )
    recogniser: str | None = option(
        None,
        "Who recognises: a name or file (default: one that neither renders nor is perturbed against).",
        flag="verify-recogniser",
    )
    retries: int = option(
        2, "How often what fails is rendered anew before it is left out.", flag="verify-retries", ge=0, le=20
    )

    @property
    def on(self) -> bool:
        """Whether anything is asked."""
        return self.recognition is not None or self.attributes is not None


class Release(Section):
    path: str | None = option(None, "Folder of the release, local or any fsspec URL.", flag="output", private=True)
    identity: Literal["none", "class", "pseudonym"] = option(
        "none", "The label a released face carries: nothing, its class, or a random name per subject."
    )
    format: Literal["auto", "files", "parquet", "webdataset"] = option(
        "auto", "How images are stored (auto: JPEG files up to 50,000 images, Parquet shards beyond)."
    )
    quality: int = option(92, "JPEG quality of released images.", ge=30, le=100)
    licence: str = option(
        "https://spdx.org/licenses/LicenseRef-unstated", "Licence of the released dataset, as a URL for its metadata."
    )
    shard_images: int = option(5_000, "Images per shard, for parquet and webdataset.", ge=1)


class Compute(Section):
    micro_batch: int = option(64, "Photos per unit of work; a killed job repeats at most one per worker.", ge=1)
    cpus: int = option(0, "CPUs to use (0: all).", ge=0, private=True)
    gpus_per_worker: float = option(
        0.0,
        "GPUs of each worker that renders, a fraction where several share one (0: render on the CPU).",
        ge=0,
        private=True,
    )
    address: str = option("local", "Ray cluster to join ('auto', or ray://…); 'local' starts one here.", private=True)


class ReleaseConfig(Section):
    """Everything that decides a release."""

    input: Input = Input()
    workspace: Workspace = Workspace()
    detect: Detect = Detect()
    attributes: Attributes = Attributes()
    policy: Policy = Policy()
    method: Method = Method()
    perturb: Perturb = Perturb()
    verify: Verify = Verify()
    output: Literal["crop", "photo"] = option(
        "crop", "What is released: aligned faces, or whole photos with the surrogates blended in.", flag="pixels"
    )
    release: Release = Release()
    compute: Compute = Compute()

    @model_validator(mode="after")
    def complete(self) -> ReleaseConfig:
        planned = self.method.name == "translation"
        if (self.method.of_class or (planned and self.method.planner != "ppas")) and self.policy.k is None:
            object.__setattr__(self, "policy", self.policy.model_copy(update={"k": 5}))
        if planned:
            self._can_be_planned()
        elif self.policy.epsilon:
            raise ValueError(f"policy.epsilon is for method translation; {self.method.name} randomises no attributes")
        if self.method.keeps_identity:
            self._claims_nothing()
        if self.method.select:
            self._release_selected(self.method.select)
        if self.method.generated and self.detect.crop_size not in GENERATED_SIZES:
            sizes = ", ".join(map(str, GENERATED_SIZES))
            raise ValueError(f"detect.crop_size {self.detect.crop_size}: the generator makes faces of {sizes} px")
        self._perturbs_what_it_may()
        self._verifies_what_it_may()
        if self.compute.gpus_per_worker and not self.neural:
            raise ValueError(
                f"compute.gpus_per_worker: {self.method.name} as it is asked for needs no GPU; leave it out"
            )
        if self.method.surrogates_per_subject and (not self.method.of_class or self.output != "crop"):
            raise ValueError("method.surrogates_per_subject is for k-same with output: crop; the others alter photos")
        if self.release.identity == "class" and not self.method.of_class and not self.policy.quasi_identifiers:
            raise ValueError(
                f"release.identity: class needs classes, and {self.method.name} without attributes forms none"
            )
        if "subject" in self.policy.model_fields_set:
            self._take_subject()
        self._attributes_name_nobody()
        if self.input.subjects == "column" and not self.input.subject_column:
            raise ValueError("input.subjects: column needs input.subject_column")
        if not (self.input.attributes or _is_table(self.input.path)):
            self._can_be_predicted((*self.policy.quasi_identifiers, *self.policy.sensitive))
        return self

    @property
    def neural(self) -> bool:
        """Whether networks make the released pixels, which a GPU does faster."""
        return self.method.neural or self.perturb.on

    def _perturbs_what_it_may(self) -> None:
        if self.method.name == CLOAK and not self.perturb.on:
            raise ValueError(
                f"method {CLOAK} releases originals as they are, so name what perturbs them: perturb.name "
                f"{_or(tuple(PERTURBATIONS))}"
            )
        if self.method.keeps_identity and self.perturb.surrogates:
            raise ValueError(
                "perturb: identity-preserving keeps people recognisable, and a perturbation against recognisers "
                "contradicts it; universal with perturb.attributes alone does not"
            )

    def _verifies_what_it_may(self) -> None:
        asked = self.verify
        if self.method.keeps_identity and asked.recognition is not None:
            raise ValueError("verify.recognition: recognisers are meant to match the faces of identity-preserving")
        if self.method.name == CLOAK and asked.recognition is not None:
            raise ValueError(
                "verify.recognition: with method none every face is its original before it is perturbed, and the worse "
                "of before and after counts; choose a method that replaces or alters faces"
            )
        if asked.attributes is not None and not (self.method.shows_attributes and self.policy.quasi_identifiers):
            raise ValueError(
                "verify.attributes is for methods that show planned attributes: translation, or k-same with a "
                "generator and policy.quasi_identifiers"
            )
        for leaf in ("recogniser", "retries"):
            if not asked.on and getattr(asked, leaf) != type(asked).model_fields[leaf].default:
                raise ValueError(f"verify.{leaf} needs verify.recognition or verify.attributes")

    def _can_be_planned(self) -> None:
        """Whether the planner of a translation has what it needs."""
        policy, planner = self.policy, self.method.planner
        if not policy.quasi_identifiers:
            raise ValueError(
                "method translation needs policy.quasi_identifiers, the attributes that are planned, released and shown"
            )
        if planner == "ppas" and policy.t is None:
            raise ValueError(
                "method.planner ppas compares distances with t: give policy.t and a sensitive attribute, or use "
                "ppas-verified"
            )
        if policy.epsilon and planner not in RANDOMISING_PLANNERS:
            raise ValueError(
                f"policy.epsilon needs method.planner {' or '.join(RANDOMISING_PLANNERS)}; {planner} randomises nothing"
            )

    def _claims_nothing(self) -> None:
        """A release in which recognisers match can promise its people no crowd, and their attributes no secrecy."""
        policy = self.policy
        asked = {"k": policy.k, "l": policy.l, "t": policy.t, "quasi_identifiers": policy.quasi_identifiers}
        named = [name for name, value in (asked | {"sensitive": policy.sensitive}).items() if value]
        if named:
            raise ValueError(
                f"policy.{named[0]}: identity-preserving keeps people recognisable, so no crowd is claimed and no "
                "attribute released; leave it out"
            )

    def _release_selected(self, name: str) -> None:
        """What a class shares is shown by its faces, and so is released."""
        if name in self.policy.sensitive:
            raise ValueError(
                f"method.select {name} is sensitive, and its value would be shown by every face of a class"
            )
        if name not in self.policy.quasi_identifiers:
            names = (*self.policy.quasi_identifiers, name)
            object.__setattr__(self, "policy", self.policy.model_copy(update={"quasi_identifiers": names}))

    def _can_be_predicted(self, names: tuple[str, ...]) -> None:
        """Of an input that brings no attributes: whether a predictor knows all that the policy names."""
        if not names:
            return
        said = "policy names attributes, and the input brings none"
        if self.attributes.predictor == "none":
            raise ValueError(f"{said}: give input.attributes, a manifest with columns, or attributes.predictor")
        strange = [name for name in names if name not in presets.predictable()]
        if strange:
            raise ValueError(
                f"{said}: {strange[0]} cannot be predicted, so give input.attributes, or a manifest with columns "
                f"({presets.hint(predicted=True)})"
            )

    def _take_subject(self) -> None:
        """policy.subject, where it was given, names the manifest's column of people."""
        column = self.policy.subject
        if self.input.path and not _is_table(self.input.path):
            raise ValueError(
                f"policy.subject {column} names a column, and the input is a folder, which names people by its own "
                "folders; leave it out, or give a manifest"
            )
        if not _is_table(self.input.path):
            return
        if self.input.subjects not in ("auto", "column"):
            raise ValueError(f"policy.subject {column} and input.subjects: {self.input.subjects} contradict each other")
        if self.input.subject_column is None:
            object.__setattr__(self, "input", self.input.model_copy(update={"subject_column": column}))
        elif self.input.subject_column != column:
            raise ValueError(f"policy.subject {column} and input.subject_column {self.input.subject_column} differ")

    def _attributes_name_nobody(self) -> None:
        roles = {
            self.policy.subject: "policy.subject",
            self.input.path_column: "input.path_column",
            self.input.attributes_key: "input.attributes_key",
            self.input.subject_column: "input.subject_column",
        }
        for name in (*self.policy.quasi_identifiers, *self.policy.sensitive):
            if name in roles:
                raise ValueError(f"{name} names people or photos ({roles[name]}), so it cannot be released")

    @property
    def workspace_path(self) -> str:
        return self.workspace.path or f"{(self.release.path or 'release').rstrip('/')}.workspace"

    def public(self) -> dict[str, Any]:
        """The config as it may be released: everything but paths, addresses and catalogs."""
        told = _public(self)
        if not self.verify.on:
            del told["verify"]
        return told


def _is_table(path: str | None) -> bool:
    return bool(path) and str(path).lower().endswith((".parquet", ".csv"))


def _is_file(model: str) -> bool:
    return "/" in model or "\\" in model or model.endswith((".safetensors", ".onnx"))


OWN_FILE = "a file of the user's; see the audit for its hash"


def _public(section: Section) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if extra.get("private"):
            continue
        if isinstance(value, Section):
            value = _public(value)
            if not value:
                continue
        # A model given as a file is named by its hash in the audit; its path says where it lay.
        if name in ("detector", "recogniser", "predictor", "judge", "translator") and _is_file(str(value)):
            value = OWN_FILE
        if name == "surrogates" and isinstance(value, tuple):
            value = [OWN_FILE if _is_file(surrogate) else surrogate for surrogate in value]
        out[name] = list(value) if isinstance(value, tuple) else value
    return out


def parse_diversity(text: str) -> dict[str, Any]:
    """``entropy:1.5``, ``distinct:2``, ``recursive:3:2`` (c = 3, l = 2) or a bare number (distinct)."""
    parts = text.split(":")
    if len(parts) == 1:
        return {"kind": "distinct", "value": float(parts[0])}
    if parts[0] == "recursive":
        return {"kind": "recursive", "c": float(parts[1]), "value": float(parts[2])}
    return {"kind": parts[0], "value": float(parts[1])}


def parse_closeness(text: str) -> dict[str, Any]:
    """``0.2`` or ``0.2:ordered``."""
    value, _, ground = text.partition(":")
    return {"value": float(value), **({"ground": ground} if ground else {})}


def load(file: str | Path | None = None, overrides: dict[str, Any] | None = None) -> ReleaseConfig:
    """A config from a YAML file and dotted overrides (``{"policy.k": 10}``), which win.

    Raises ConfigError, naming the file and the key.
    """
    data = read_yaml(file, "config", "policy") if file is not None else {}
    for dotted, value in (overrides or {}).items():
        *sections, leaf = dotted.split(".")
        target = data
        for section in sections:
            inner = target.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"config {file}: {section}: expected keys below it, found {inner!r}")
            target = inner
        target[leaf] = value
    try:
        return ReleaseConfig.model_validate(data)
    except ValidationError as error:
        where = f"config {file}: " if file else ""
        raise ConfigError(where + _said(error.errors())) from None


def load_policy(file: str | Path | None, overrides: dict[str, Any] | None = None) -> TablePolicy:
    """A policy from a YAML file, alone in it or under ``policy:``, and overrides (``{"k": 10}``), which win.

    Raises ConfigError, naming the file and the key.
    """
    data = read_yaml(file, "policy", "subject") if file is not None else {}
    if isinstance(data.get("policy"), dict):
        data = data["policy"]
    try:
        return TablePolicy.model_validate({**data, **(overrides or {})})
    except ValidationError as error:
        where = f"policy {file}: " if file else "policy: "
        raise ConfigError(where + _said(error.errors())) from None


MOST_VALUES = 100_000
"""Values in a YAML file, each time that an alias repeats them: a few lines can stand for billions."""


class _Loader(yaml.SafeLoader):
    """Of two values of a key YAML takes the last without a word, which may be the weaker k."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(
                        f"the key {key.value!r} is there twice, again in line {key.start_mark.line + 1}"
                    )
                seen.add((key.tag, key.value))
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def read_yaml(file: str | Path, what: str, expected: str) -> dict[str, Any]:
    """The keys of a YAML file: text, numbers, yes and no, lists and further keys; ``expected``: one of them.

    Raises ConfigError for everything else.
    """
    try:
        data = yaml.load(Path(file).read_text(encoding="utf-8"), _Loader) or {}
    except FileNotFoundError:
        raise ConfigError(f"{what} {file}: no such file") from None
    # PyYAML raises whatever Python says of numbers, dates and depths that it cannot make.
    except Exception as error:
        raise ConfigError(f"{what} {file}: not readable as YAML: {reason(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{what} {file}: expected keys like '{expected}:' at the top, found {type(data).__name__}")
    left: list[Any] = [data]
    for _ in range(MOST_VALUES):
        if not left:
            return data
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        elif not isinstance(value, str | int | float | None):
            raise ConfigError(f"{what} {file}: {_short(value)} is a {type(value).__name__}; put text into quotes")
    raise ConfigError(f"{what} {file}: more than {MOST_VALUES:,} values")


def _said(errors: Sequence[Any]) -> str:
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return "; ".join(map(_sentence, errors[:5])) + more


def _sentence(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(error.get("input"), dict | Section) else f" (given: {_short(error.get('input'))})"
    return f"{key}: {message}{shown}" if key else message


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}…"
