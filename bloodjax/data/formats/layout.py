"""What the folders of a source mean: its splits, classes and groups.

A layout is the meaning of each level of folders, from the outermost on: "class", "split/class",
"class/group", ... It is found from the names of the folders, unless the user states it.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Collection, Iterable, Sequence

from bloodjax.data import names
from bloodjax.data.image_types import SUFFIXES
from bloodjax.data.reading import LeftOut
from bloodjax.errors import UserError

AUTO = "auto"
LEVELS = ("split", "class", "group", "other")

EXPECTED = (
    "expected <class>/<image> or <split>/<class>/<image> with splits train, val, test, or another "
    "layout that config.data.layout (or --layout) states, such as class/group"
)
NO_CLASS, NO_IMAGES = "without a class", "in folders without images"

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# "Test-A", "TEST_SIMPLE", "test1": several splits of one kind.
_SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?:_(\w+)|([a-z]|[0-9]+))?")
_SPLIT_SUFFIX = re.compile(r"_?(set|data|dataset|images|imgs|pictures|split)$")
# Folders beside a training split whose images have no labels.
_UNLABELLED = re.compile(r"(un|no_?)_?label|unsupervised|unknown|predict|inference|new")
# Names of folders that only hold the images of a split.
_CONTAINER = re.compile(r"imag|img|pic|data|photo|test|train|val|unlabel|prelim|final")
_DOCUMENTS = (
    *(".csv", ".dat", ".db", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".json", ".log"),
    *(".m", ".mat", ".md", ".pdf", ".ppt", ".pptx", ".py", ".rtf", ".toml", ".tsv", ".txt", ".xls"),
    *(".xlsx", ".xml", ".yaml", ".yml"),
    *(".arrow", ".gz", ".h5", ".hdf5", ".npy", ".npz", ".parquet", ".pkl", ".tar", ".zip"),
)

# How likely the name of a folder is that of a group and not of a class.
_UNIT = (
    r"(?:patient|pat|pt|case|subject|subj|sub|slide|donor|smear|uid|id|well|plate|scan|series|"
    r"sample|specimen|animal|mouse|run|exp|experiment|site|cent(?:er|re)|hospital|lab|day|date|"
    r"session|person|individual|volunteer|proband)"
)
_KEY = re.compile(rf"{_UNIT}[-_ #]*[a-z]{{0,2}}[-_ ]?[0-9].*|[ps][-_ #]*[0-9]+.*")
# A unit and a letter, as in patient_a and DonorA, but not the plural labs.
_LETTERED = re.compile(rf"(?i:{_UNIT})(?:[-_ #]+[A-Za-z]|[A-Z])")
_LIKELY = 3  # the rank of such names


@dataclasses.dataclass(frozen=True)
class Layout:
    """The images of a source and what their folders say of them.

    Attributes:
      levels: Meaning of each level of folders.
      names: Path of each image, sorted.
      splits: Split of each image, or "".
      folders: Name of the folder that is the class of each image.
      groups: Key of each image's group, or "".
      classes: Names of all folders that are classes, also of empty ones.
      root: The folders around everything else, as "a/b/", or "".
      details: Facts for `Reading.details`.
      left_out: Images and folders that are not used.
    """

    levels: tuple[str, ...]
    names: tuple[str, ...]
    splits: tuple[str, ...]
    folders: tuple[str, ...]
    groups: tuple[str, ...]
    classes: frozenset[str]
    root: str = ""
    details: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def description(self) -> str:
        """The layout in words, such as "split and class folders"."""
        *first, last = self.levels
        return f"{', '.join(first)} and {last} folders" if first else f"{last} folders"


def is_valid(layout: str) -> bool:
    """Whether a text is "auto" or states a layout, in which "class" occurs once."""
    levels = layout.split("/")
    distinct = len(set(levels) - {"other"}) == len([level for level in levels if level != "other"])
    stated = set(levels) <= set(LEVELS) and distinct and "class" in levels
    return layout == AUTO or stated


def check(layout: str, where: str) -> str:
    """Returns `layout`.

    Raises:
      UserError: It is not valid; the message starts with `where`.
    """
    if not is_valid(layout):
        raise UserError(
            f"{where}={layout}: expected auto, or the levels of folders joined by /, each one of "
            f"{', '.join(LEVELS)}, such as split/class/group"
        )
    return layout


def find(
    where: object,
    files: Iterable[str],
    folders: Iterable[str],
    layout: str = AUTO,
    tables: Collection[str] = (),
) -> Layout:
    """Finds the images of a source and what their folders mean.

    Args:
      where: The source, for messages.
      files: Path of each file.
      folders: Path of each folder, including empty ones.
      layout: "auto", or the layout that the user states.
      tables: Those of `files` that are tables of groups. A folder with nothing else is no class.

    Raises:
      UserError: The layout is none that is known, or could be one of two.
    """
    others = sorted(set(files) - set(tables))
    if tables:
        folders = set(folders) - (_parents(tables) - _parents(others))
    tree = _Tree(where, others, sorted(folders))
    return tree.auto() if layout == AUTO else tree.stated(tuple(layout.split("/")))


def split_of(folder: str) -> str:
    """The split that a folder's name stands for, "train", "val", "test", "test_simple", or ""."""
    name = re.sub(r"[\s._-]+", "_", names.form(folder))
    name = re.sub(r"^[0-9]+_", "", name)
    name = _SPLIT_SUFFIX.sub("", name) or name
    match = _SPLIT.fullmatch(name)
    if not match:
        return ""
    kind, suffix = SPLITS[match.group(1)], match.group(2) or match.group(3)
    return f"{kind}_{suffix}" if suffix else kind


def _parents(files: Iterable[str]) -> set[str]:
    return {str(parent) for file in files for parent in pathlib.PurePosixPath(file).parents}


Parts = tuple[str, ...]


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _may_be_image(name: str) -> bool:
    """Whether a file is an image by its name, or may be one under another name."""
    return not name.lower().endswith(_DOCUMENTS)


class _Tree:
    """Files and folders of a source, as the names on their paths."""

    def __init__(self, where: object, files: Sequence[str], folders: Sequence[str]):
        self._where = where
        self._files: list[Parts] = [tuple(path.split("/")) for path in files]
        self._folders: list[Parts] = [tuple(path.split("/")) for path in folders]
        self._root: Parts = ()
        self._details: list[str] = []
        self._left_out: list[LeftOut] = []

    def stated(self, levels: Parts) -> Layout:
        """The images under a layout that the user states; deeper levels are passed over."""
        self._drop_documents()
        n = len(levels)
        while True:
            depths = [len(parts) - 1 for parts in self._files if _is_image(parts[-1])]
            if len(self._tops()) != 1 or min(depths, default=0) <= n:
                break
            self._enter(self._tops().pop())
        images = [parts for parts in self._files if len(parts) > n]
        self._refuse(p for p in self._files if len(p) <= n and _is_image(p[-1]))
        return self._layout(levels, images, self._folders)

    def auto(self) -> Layout:
        """The images, under the layout that the names of the folders suggest."""
        self._drop_documents()
        while (wrapper := self._wrapper(self._files, self._folders)) is not None:
            self._enter(wrapper)
        if self._has_splits():
            return self._split_folders()
        self._refuse(p for p in self._files if len(p) == 1 and _is_image(p[0]))
        images = _deep_enough(self._files)
        seconds = {parts[1] for parts in images if len(parts) > 2}
        if seconds and all(len(p) == 3 for p in images) and all(map(split_of, seconds)):
            return self._layout(("class", "split"), images, self._folders)
        return self._layout(self._levels(images), images, self._folders)

    def _enter(self, folder: str) -> None:
        """Goes into a folder that contains everything else."""
        self._root = (*self._root, folder)
        self._files = [parts[1:] for parts in self._files if parts[0] == folder and len(parts) > 1]
        self._folders = [p[1:] for p in self._folders if p[0] == folder and len(p) > 1]

    def _tops(self) -> set[str]:
        return {parts[0] for parts in self._folders}

    @staticmethod
    def _wrapper(files: Sequence[Parts], folders: Sequence[Parts]) -> str | None:
        """The one folder that contains all images, in folders of its own; None if there is none.

        Files that are no images may lie beside it.
        """
        tops = {parts[0] for parts in folders}
        deepest = max((len(parts) for parts in [*files, *folders]), default=0)
        beside = any(len(parts) == 1 and _is_image(parts[0]) for parts in files)
        if len(tops) != 1 or deepest < 3 or beside or split_of(min(tops)):
            return None
        return tops.pop()

    def _drop_documents(self) -> None:
        """Leaves out folders that contain tables and texts, but nothing else."""
        kinds: dict[Parts, set[bool]] = {}
        for parts in self._files:
            is_document = parts[-1].lower().endswith(_DOCUMENTS)
            for depth in range(1, len(parts)):
                kinds.setdefault(parts[:depth], set()).add(is_document)
        without = {parts for parts, kind in kinds.items() if kind == {True}}
        outermost = {parts for parts in without if parts[:-1] not in without}
        if not outermost:
            return

        def is_dropped(parts: Parts) -> bool:
            return any(parts[:depth] in outermost for depth in range(1, len(parts) + 1))

        dropped = [parts for parts in self._files if is_dropped(parts)]
        self._files = [parts for parts in self._files if not is_dropped(parts)]
        self._folders = [parts for parts in self._folders if not is_dropped(parts)]
        self._left_out.append(LeftOut(NO_IMAGES, "", len(dropped)))

    def _has_splits(self) -> bool:
        tops = self._tops()
        if tops and all(map(split_of, tops)):
            return True
        # Beside a training split, other folders may lie, such as one of images without labels.
        has_classes = {p[0] for p in self._files if len(p) > 2 and split_of(p[0]) == "train"}
        return bool(has_classes)

    def _split_folders(self) -> Layout:
        """Splits with classes; a split or another folder without classes is left out."""
        bodies: dict[str, list[Parts]] = {top: [] for top in self._tops()}
        for parts in self._files:
            if len(parts) > 1:
                bodies[parts[0]].append(parts[1:])
        self._refuse(p for p in self._files if len(p) == 1 and _is_image(p[0]))
        known = {
            names.form(parts[0])
            for top, body in bodies.items()
            if split_of(top) == "train"
            for parts in body
            if len(parts) > 1
        }
        flat = {top for top, body in bodies.items() if self._is_flat(top, body, known)}
        if not known:  # a source of other splits, such as the test set alone
            self._refuse((top, *p) for top in sorted(flat) for p in bodies[top] if len(p) == 1)
        for top in sorted(flat):
            count = sum(_may_be_image(parts[-1]) for parts in bodies.pop(top))
            reason = f"{NO_CLASS}, in {top}"
            self._left_out += [LeftOut(reason, "", count)] if count else []
        images = []
        for top, body in sorted(bodies.items()):
            self._refuse((top, *p) for p in body if len(p) == 1 and _is_image(p[0]))
            inside = _deep_enough(body)
            if not split_of(top):
                self._refuse((top, *p) for p in inside if names.form(p[0]) not in known)
            images += [(top, *parts) for parts in inside]
        folders = [parts for parts in self._folders if parts[0] in bodies]
        levels = self._levels([parts[1:] for parts in images], [parts[0] for parts in images])
        return self._layout(("split", *levels), images, folders)

    def _is_flat(self, top: str, body: Sequence[Parts], known: set[str]) -> bool:
        """Whether the folder of a split, or beside splits, has images but no classes."""
        images = [parts for parts in body if _may_be_image(parts[-1])]
        if not images:
            return False
        if not split_of(top) and _UNLABELLED.match(names.form(top)):
            return True
        if all(len(parts) == 1 for parts in images):
            return split_of(top) != "train" and names.form(top) not in known
        inside = {names.form(parts[0]) for parts in images if len(parts) > 1}
        one = len(inside) == 1 and all(len(parts) == 2 for parts in images)
        return bool(known) and one and not inside & known and bool(_CONTAINER.search(min(inside)))

    def _levels(self, images: Sequence[Parts], tops: Sequence[str] = ()) -> Parts:
        """The meaning of the levels between the split, if any, and the image."""
        paths = [parts[:-1] for parts in images]
        depths = {len(path) for path in paths}
        if not depths or min(depths) == 1:
            for i, path in enumerate(paths):
                if len(path) > 1:
                    top = (tops[i],) if tops else ()
                    self._refuse([(*top, *images[i])])
            return ("class",)
        n = min(depths)
        ranks = [_rank({path[level] for path in paths}) for level in range(n)]
        lowest = [level for level in range(n) if ranks[level] == min(ranks)]
        others = [rank for level, rank in enumerate(ranks) if level != lowest[0]]
        clear = len(lowest) == 1 and (min(ranks) == 0 or min(others) >= _LIKELY)
        if not clear:
            first, second = ("/".join(dict.fromkeys(p[i] for p in paths)) for i in (0, 1))
            before, after = "split/" if tops else "", "/other" * (n - 2)
            raise UserError(
                f"{self._where}: {'/'.join((*self._root, *images[0]))} is in folders of which "
                f"either may be the class ({_short(first)}; {_short(second)}); expected "
                f"config.data.layout={before}class/group{after} or {before}group/class{after} "
                "(--layout), where a group is a patient, a slide or a fold, and other a level "
                "without meaning"
            )
        levels = ["other"] * n
        levels[lowest[0]] = "class"
        levels[1 if lowest[0] == 0 else 0] = "group"
        return tuple(levels)

    def _layout(self, levels: Parts, images: Sequence[Parts], folders: Sequence[Parts]) -> Layout:
        level = {name: i for i, name in enumerate(levels) if name != "other"}
        root = "".join(f"{name}/" for name in self._root)
        images = sorted(images)
        at = level["class"]
        splits = ("",) * len(images)
        if "split" in level:
            split = self._split_names({parts[level["split"]] for parts in images})
            splits = tuple(split[parts[level["split"]]] for parts in images)
        groups = ("",) * len(images)
        if "group" in level:
            groups = tuple(names.tidy(parts[level["group"]]) for parts in images)
            self._details.append(_counted_groups(groups))
        return Layout(
            levels=levels,
            names=tuple(root + "/".join(parts) for parts in images),
            splits=splits,
            folders=tuple(parts[at] for parts in images),
            groups=groups,
            root=root,
            classes=frozenset({p[at] for p in images} | {p[at] for p in folders if len(p) > at}),
            details=tuple(self._details),
            left_out=tuple(self._left_out),
        )

    def _split_names(self, tops: set[str]) -> dict[str, str]:
        """The split of each folder: "TestA" is test if there is no plain test beside it."""
        split = {top: split_of(top) or names.form(top) for top in sorted(tops)}
        for kind in ("train", "val", "test"):
            alike = [top for top, name in split.items() if name.startswith(f"{kind}_")]
            if alike and kind not in split.values():
                split[min(alike, key=split.__getitem__)] = kind
        others = sorted(set(split.values()) - {"train", "val", "test"})
        for top, name in split.items():
            if names.form(top) not in SPLITS and name in ("train", "val", "test"):
                self._details.append(f"{top} is {name}")
        if others:
            self._details.append(f"more splits: {', '.join(others)}")
        return split

    def _refuse(self, out_of_place: Iterable[Parts]) -> None:
        for parts in out_of_place:
            path = "/".join((*self._root, *parts))
            raise UserError(f"{self._where}: {path} is out of place, {EXPECTED}")


def _deep_enough(files: Sequence[Parts]) -> list[Parts]:
    """The files in folders, without those above all images, such as a table of labels."""
    depths = [len(parts) for parts in files if _is_image(parts[-1])]
    least = max(2, min(depths, default=2))
    return [parts for parts in files if len(parts) >= least]


def _rank(folders: set[str]) -> int:
    """How likely names are those of groups: 0 (no digits) to 4 (fold_0), of the median name."""
    ranks = sorted(map(_rank_of, folders))
    return ranks[(len(ranks) - 1) // 2]


def _rank_of(folder: str) -> int:
    name = names.form(folder)
    if names.is_fold(name):
        return 4
    if _KEY.fullmatch(name) or _LETTERED.fullmatch(folder):
        return _LIKELY
    if re.fullmatch(r"[0-9]+", name):
        return 1
    return 2 if any(map(str.isdecimal, name)) else 0


def _counted_groups(groups: Sequence[str]) -> str:
    found = collections.Counter(groups)
    n = f"{len(found)} groups" if len(found) != 1 else "1 group"
    return f"{n}, from folders such as {min(found)}" if found else "no groups"


def _short(text: str) -> str:
    return names.shown(text.split("/"), 3)
