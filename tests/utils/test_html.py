"""Notebooks: small, safe tables below scikit-learn's diagram; short names elsewhere."""

import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from sk_calex import FrozenBackbone, TapLayout
from sk_calex.baselines import SDNClassifier, ZTWClassifier
from sk_calex.cascade._costs import stage_and_head_macs
from sk_calex.policies import SharedThreshold
from sk_calex.utils._html import MAX_ROWS, Cell, si, table
from tests._cascade_models import (
    STAGE_MACS,
    flat_cascade,
    images,
    small_branch,
    tiny_backbone,
)

LABELS = np.array(["<script>alert(1)</script>", "cat", 'dog & "bird"'])


class Cells(HTMLParser):
    """Reads the cells of a table as plain text, row by row, and what else it holds."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.titles, self.depth = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.depth, "not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.depth.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.depth.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.depth):
            self.rows[-1][-1] += data


def own(estimator):
    """What we add to scikit-learn's diagram."""
    theirs, end, ours = estimator._repr_html_().rpartition("</body>")
    assert end
    assert "sk-calex" not in theirs
    return ours


def by(*sizes):
    return " \N{MULTIPLICATION SIGN} ".join(map(str, sizes))


@pytest.fixture(scope="module")
def cascade():
    X, y = images(300)
    return flat_cascade(
        tiny_backbone(),
        branch=small_branch(),
        margin=0.3,
        min_support=2,
        random_state=0,
    ).fit(X, LABELS[y])


def test_the_table_of_a_cascade_says_what_its_attributes_say(cascade):
    header, *rows = Cells(own(cascade)).rows
    assert len(rows) == 3
    said = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["stage"] for row in said] == ["stem", "block1", "last stage"]
    assert [row["feature shape"] for row in said] == [by(4, 4, 4), by(8, 4, 4), "3"]
    assert [row["stage, MACs"] for row in said] == [si(macs) for macs in STAGE_MACS]
    macs = [branch.macs_ for branch in cascade.branches_]
    assert [row["branch, MACs"] for row in said] == [si(macs[0]), si(macs[1]), ""]
    assert [row["branch"] for row in said] == ["ConvHead"] * 2 + ["the backbone's"]
    for k, cost in enumerate(cascade.depth_costs_):
        share = 100 * cost / sum(STAGE_MACS)
        assert said[k]["answer here costs"] == f"{si(cost)} ({share:.0f} %)"
    assert cascade.enabled_.any()
    held = len(cascade.calibration_.labels)
    for k, on in enumerate(cascade.enabled_):
        assert said[k]["classes that may exit"] == f"{on.sum()} of 3"
        if not on.any():
            assert [said[k][name] for name in header[7:]] == ["", "0 %", ""]
            continue
        low, high = cascade.thresholds_[k][on].min(), cascade.thresholds_[k][on].max()
        both = f"{low:.2f} to {high:.2f}" if low < high else f"{low:.2f}"
        assert said[k]["threshold"] == both
        # With survivor calibration those who exit are those that the thresholds met.
        support = cascade.support_[k][on].sum()
        right = (cascade.precision_[k] * cascade.support_[k])[on].sum() / support
        assert said[k]["answered here"] == f"{100 * support / held:.0f} %"
        assert said[k]["of them right"] == f"{100 * right:.1f} % of {support:.0f}"


def test_the_note_gives_accuracy_and_saving_on_the_calibration_samples():
    X, y = images(300)
    half = np.arange(300) % 2
    held = half == 1
    weight = np.where(np.arange(300) % 3, 1.0, 0.0)  # absent ones are not counted
    cascade = flat_cascade(
        tiny_backbone(),
        branch=small_branch(),
        margin=0.3,
        margin_mode="relative",
        min_support=3,
        cv=[(np.flatnonzero(~held), np.flatnonzero(held))],
        random_state=0,
    ).fit(X, y, sample_weight=weight)
    used = held & (weight > 0)
    right = cascade.score(X[used], y[used])
    alone = (cascade.backbone_.predict(X[used]) == y[used]).mean()
    saved = cascade.flops_reduction(X[used])
    assert (
        f"On the {used.sum()} calibration samples, which set the exit rule: accuracy "
        f"{100 * right:.1f} %, of the last stage alone {100 * alone:.1f} %; "
        f"{100 * saved:.0f} % fewer MACs than the backbone."
    ) in unescape(own(cascade))


def test_what_users_name_is_escaped(cascade):
    modules = [nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2)]
    net = nn.Sequential()
    for name, module in zip(["a", "<img src=x>&\"'", "c"], modules, strict=True):
        net.add_module(name, module)
    X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    backbone = FrozenBackbone(net, taps=["<img src=x>&\"'"])
    for shown in (backbone, flat_cascade(backbone), clone(backbone).fit(X)):
        read = Cells(own(shown))
        assert "img" not in read.tags
        assert ["<img src=x>&\"'"] in [row[:1] for row in read.rows]
    read = Cells(own(cascade))
    assert "script" not in read.tags
    titles = " ".join(read.titles)
    assert "<script>alert(1" in titles
    assert 'dog & "bird"' in titles


def test_html_has_no_scripts_and_no_external_links(cascade):
    for estimator in (cascade, cascade.backbone_):
        text = own(estimator)
        read = Cells(text)
        assert set(read.tags) <= {
            *("style", "div", "table", "caption", "thead", "tbody"),
            *("tr", "th", "td", "p", "span", "i"),
        }
        assert not re.search(r"https?:|url\(|src=|href=|\bon\w+=|@import", text)
        # Text keeps the page's colour, and fills are see-through: light and dark alike.
        assert set(re.findall(r"color:(\w+)", text)) == {"inherit"}
        assert set(re.findall(r"rgba?\([^)]*\)", text)) <= {
            "rgba(128,128,128,.4)",
            "rgba(128,128,128,.25)",
        }


@pytest.mark.parametrize(("filler", "limit"), [("x", 10_000), ('"', 15_000)])
def test_many_taps_and_long_names_stay_small(filler, limit):
    names = [f"{k}" + filler * 300 for k in range(60)]
    net = nn.Sequential()
    for name in names:
        net.add_module(name, nn.Linear(3, 3))
    backbone = FrozenBackbone(net, taps=names[:-1])
    assert len(own(backbone)) < limit
    X, y = images(90)
    X = X.reshape(90, -1)[:, :3]
    assert len(own(backbone.fit(X))) < limit
    labels = np.array([filler * 300 + f"{k}" for k in range(3)])
    cascade = flat_cascade(
        clone(backbone),
        branch=LogisticRegression(),
        final_estimator=LogisticRegression(),
        margin=0.9,
        min_support=0,
        random_state=0,
        alignment="none",
        targets="labels",
    ).fit(X, labels[y])
    text = own(cascade)
    assert len(text) < limit
    rows = Cells(text).rows
    assert len(rows) == 1 + MAX_ROWS + 1
    assert rows[-2] == ["\N{HORIZONTAL ELLIPSIS}"] * len(rows[0])
    assert rows[-1][3] == "LogisticRegression"


def test_ordinary_cascades_cost_two_kilobytes(cascade):
    assert len(own(cascade)) < 3_000
    assert len(own(cascade.backbone_)) < 2_000


def test_the_backbone_shows_its_taps_before_and_after_fit():
    backbone = tiny_backbone()
    text = own(backbone)
    assert "FrozenBackbone of TinyNet: not fitted" in text
    assert Cells(text).rows == [["stage"], ["stem"], ["block1"], ["output"]]
    assert Cells(own(flat_cascade(backbone))).rows == Cells(text).rows
    text = own(backbone.fit(images(2)[0]))
    assert "FrozenBackbone of TinyNet: 2 taps, 195 columns (float32)" in text
    assert Cells(text).rows == [
        ["stage", "features", "columns", "MACs"],
        ["stem", by(4, 4, 4), "64", si(STAGE_MACS[0])],
        ["block1", by(8, 4, 4), "128", si(STAGE_MACS[1])],
        ["output", "3", "3", si(STAGE_MACS[2])],
    ]


@pytest.mark.parametrize("taps", ["layer1", [1, 2], None])
def test_taps_that_fit_would_refuse_are_not_listed(taps):
    assert own(FrozenBackbone(nn.Identity(), taps=taps)) == ""


def test_a_cascade_without_backbone_renders():
    assert own(flat_cascade()) == ""
    X, y = images(90)
    X = X.reshape(90, -1)[:, :5]
    cascade = flat_cascade(branch=LogisticRegression(), margin=0.9, min_support=3)
    cascade.set_params(alignment="none", targets="labels", random_state=0)
    rows = Cells(own(cascade.fit(X, y))).rows
    assert [row[0] for row in rows[1:]] == ["x", "last stage"]
    assert [row[3] for row in rows[1:]] == ["LogisticRegression"] * 2
    assert rows[1][5] == "15 (100 %)"  # the last stage costs as much


def test_unknown_costs_are_question_marks():
    X, y = images(90)
    features = tiny_backbone().fit(X).transform(X)
    layout = TapLayout.from_feature_names(features.layout.feature_names())
    assert layout.stage_macs is None
    cascade = flat_cascade(
        input="features", branch=LogisticRegression(), random_state=0
    ).fit(type(features).wrap(features, layout), y)
    with pytest.raises(ValueError, match="unknown"):
        _ = cascade.depth_costs_
    header, *rows = Cells(own(cascade)).rows
    where = [
        header.index(name)
        for name in ("stage, MACs", "branch, MACs", "answer here costs")
    ]
    assert all(row[i] == "?" for row in rows for i in where)
    assert "MACs than" not in own(cascade)


def test_other_rules_show_their_name_and_thresholds(cascade):
    other = flat_cascade(
        tiny_backbone(),
        branch=small_branch(),
        calibrator=SharedThreshold(0.7),
        random_state=0,
    )
    X, y = images(200)
    text = own(other.fit(X, y))
    assert "SharedThreshold(threshold=0.7)" in text
    assert [row[7] for row in Cells(text).rows[1:3]] == ["0.70", "0.70"]


def test_a_rule_without_thresholds_leaves_their_cells_empty(cascade, monkeypatch):
    class Never:
        def exits(self, branch, said):
            return np.zeros(len(said.confidence), dtype=bool)

    monkeypatch.setattr(cascade, "calibrator_", Never())
    rows = Cells(own(cascade)).rows
    assert [row[6:] for row in rows[1:3]] == [["", "", "0 %", ""]] * 2
    assert "% more MACs than the backbone" in own(cascade)


@pytest.mark.parametrize("method", [SDNClassifier, ZTWClassifier])
def test_baselines_have_the_same_table(method):
    X, y = images(120)
    cascade = method(tiny_backbone(), max_iter=2, random_state=0, device="cpu")
    assert "not fitted" in own(cascade)
    text = own(cascade.fit(X, y))
    assert f"{method.__name__}: 2 branches, 3 classes, threshold=" in text
    rows = Cells(text).rows
    macs = stage_and_head_macs(cascade)[1]
    assert [row[4] for row in rows[1:]] == [si(macs[0]), si(macs[1]), ""]


def test_a_fit_that_failed_half_way_shows_the_taps(cascade):
    X, y = images(60)
    broken = flat_cascade(tiny_backbone(), branch=small_branch(), random_state=0)
    with pytest.raises(ValueError, match="one class"):
        broken.fit(X, np.zeros(60))
    assert "not fitted" in own(broken)
    again = clone(cascade).fit(X, LABELS[y])
    with pytest.raises(ValueError, match="outputs"):
        again.fit(images(60, n_classes=2)[0], np.arange(60) % 2)
    assert "not fitted" in own(again)


def test_display_as_text_is_respected(cascade):
    with config_context(display="text"):
        assert not hasattr(cascade, "_repr_html_")
        assert set(cascade._repr_mimebundle_()) == {"text/plain"}
    bundle = cascade._repr_mimebundle_()
    assert "sk-calex" in bundle["text/html"]
    assert bundle["text/plain"] == repr(cascade)


def holders(backbone):
    cascade = flat_cascade(backbone)
    return {
        "search": GridSearchCV(cascade, {"margin": [0, 0.1]}),
        "pipeline": make_pipeline(backbone, flat_cascade(input="features")),
        "search of pipeline": GridSearchCV(make_pipeline(cascade), {}),
    }


@pytest.mark.parametrize("name", holders(None))
def test_containers_render_and_name_the_module(name):
    holder = holders(tiny_backbone())[name]
    for text in (repr(holder), holder._repr_html_()):
        assert "TinyNet" in text
    html = holder._repr_html_()
    assert len(html) < 2 * len(LogisticRegression()._repr_html_()) + 40_000


def test_fitted_containers_show_the_tables_where_scikit_learn_lets_them():
    X, y = images(120)
    branch = LogisticRegression()
    inner = flat_cascade(
        input="features", branch=branch, targets="labels", alignment="none"
    )
    pipe = make_pipeline(tiny_backbone(), inner).fit(X, y)
    html = pipe._repr_html_()
    if hasattr(BaseEstimator, "_get_fitted_attr_html"):  # scikit-learn 1.9
        assert html.count('class="sk-calex"') == 2
        assert "FrozenBackbone of TinyNet: 2 taps" in html
        assert "last stage" in html
    else:
        assert "sk-calex" not in html


def test_looking_at_a_backbone_does_not_hash_its_weights(monkeypatch):
    backbone = tiny_backbone().fit(images(2)[0])

    def refuse(*args, **kwargs):
        raise AssertionError("hashed")

    monkeypatch.setattr("sk_calex.backbone._runner.module_fingerprint", refuse)
    assert "2 taps" in backbone._repr_html_()
    assert "2 taps" in make_pipeline(backbone)._repr_html_() or not hasattr(
        BaseEstimator, "_get_fitted_attr_html"
    )


def test_the_table_of_parameters_names_the_module():
    class Crop(nn.Module):
        """Preprocessing that prints as many lines as a network."""

    backbone = tiny_backbone(preprocess=Crop())
    html = backbone._repr_html_()
    assert "&lt;TinyNet&gt;" in html
    assert "&lt;Crop&gt;" in html
    assert "Conv2d" not in html


def test_repr_of_a_backbone_is_short_and_of_its_holders_bounded():
    from torchvision.models import resnet18  # slow to import

    backbone = FrozenBackbone(resnet18(), taps=["layer1", "layer2", "layer3"])
    assert repr(backbone) == (
        "FrozenBackbone(module=<ResNet>, taps=['layer1', 'layer2', 'layer3'])"
    )
    # scikit-learn prints what is nested without asking for its repr, and cuts it off.
    for holder in holders(backbone).values():
        assert len("".join(repr(holder).split())) < 1000


def test_printing_leaves_the_parameters_unchanged():
    backbone = tiny_backbone()
    repr(backbone)
    assert backbone.get_params()["module"] is backbone.module
    outer = flat_cascade(backbone).get_params()
    assert outer["backbone__module"] is backbone.module
    with config_context(print_changed_only=False):
        assert "batch_size=256" in repr(backbone)
        assert "module=<TinyNet>" in repr(backbone)


def test_cells_and_tables():
    assert Cell("a", share=0.5).html("td") == (
        '<td><span class="b"><i style="width:50%"></i></span>a</td>'
    )
    read = Cells(table("c", ["x", "y"], [["1", Cell("<2>")]], note="n"))
    assert read.rows == [["x", "y"], ["1", "<2>"]]
    assert read.tags[-1] == "p"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (1.814e9, "1.81 G"),
        (2.5e12, "2.5 T"),
        (4e15, "4000 T"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(number, text):
    assert si(number) == text
