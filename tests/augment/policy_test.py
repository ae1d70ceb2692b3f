import pytest

from bloodjax.augment.ops import POOLS
from bloodjax.augment.policy import Layer, Mix, Pass, Policy, PolicyError, parse, stages


def test_views_alone_are_only_views():
    assert parse("d4") == Policy(views="d4")
    assert parse("none").only_views
    assert not parse("d4|mixup").only_views
    assert not parse("blur").only_views


def test_a_policy_with_every_kind_of_stage():
    found = parse(
        "flip|randaugment(2, 0.4)|erase(0.5, p=0.25)|mixup(p=0.5)|cutmix(0.8, 0.4)|fill('edge')"
    )
    standard = Layer(POOLS["standard"], 0.4, 0.4)
    assert found.views == "flip"
    assert found.passes == (Pass((standard, standard, Layer(("erase",), 0.0, 0.5, 0.25))),)
    assert found.mix == Mix(0.2, 0.5, 0.8, 0.4)
    assert found.fill == "edge"


def test_stages_are_the_text_between_bars():
    text = "d4 | choice('microscope', 0.8, 2)|erase(0.5, p=0.25)"
    assert stages(text) == ("d4", "choice('microscope', 0.8, 2)", "erase(0.5, p=0.25)")
    assert parse("|".join(stages(text))) == parse(text)


def test_styles_are_mixed_without_labels():
    found = parse("fourier(0.8, band=0.1, p=0.5)|mixstyle(0.2, 0.25)")
    assert found.mix == Mix(
        fourier_alpha=0.8, fourier_band=0.1, fourier_p=0.5, mixstyle_alpha=0.2, mixstyle_p=0.25
    )
    assert found.mix
    assert found.mix.styles
    assert not found.mix.labelled
    assert not found.only_views
    assert not parse("mixup|cutmix(p=0.0)").mix.styles
    assert not parse("fourier(p=0.0)").mix


def test_policies_are_layers_of_pools():
    (trivial,) = parse("trivialaugment('rotate, blur')").passes[0].layers
    assert trivial == Layer(("rotate", "blur"), 0.0, 1.0)
    (choice,) = parse("choice(('rotate', 'blur'), magnitude=0.3)").passes[0].layers
    assert choice == Layer(("rotate", "blur"), 0.0, 0.3)
    assert len(parse("choice(num_ops=3)").passes[0].layers) == 3
    assert parse("choice('all')").passes[0].pool == frozenset(POOLS["all"])


def test_augmix_parts_what_is_before_from_what_is_after():
    before, mixture, after = parse("rotate|augmix(2, 4, 0.5)|noise").passes
    assert (before.pool, after.pool) == ({"rotate"}, {"noise"})
    assert (mixture.width, len(mixture.layers), mixture.layers[0].high) == (2, 4, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotatte", "unknown operation 'rotatte': did you mean rotate?"),
        ("randaugment(2, 1.5)", "randaugment's magnitude is 1.5, expected a number from 0 to 1"),
        ("randaugment(2.5)", "randaugment's num_ops is 2.5, expected an integer from 1 to 16"),
        ("rotate(-0.1)", "rotate's magnitude is -0.1"),
        ("rotate(0.1, p=2)", "rotate's p is 2, expected a number from 0 to 1"),
        ("rotate(0.1, q=2)", "expected rotate(magnitude=0.5, p=1.0)"),
        ("mixup(p=0.6)|cutmix(p=0.6)", "probabilities of 1.2 in all, expected at most 1"),
        ("mixup(alpha=0)", "mixup's alpha is 0, expected a number from 0.01 to 100"),
        ("mixup|mixup", "mixup comes after another of its kind"),
        ("fourier(1.5)", "fourier's alpha is 1.5, expected a number from 0 to 1"),
        ("fourier(band=0.6)", "fourier's band is 0.6, expected a number from 0 to 0.5"),
        ("fourier(p=-1)", "fourier's p is -1"),
        ("mixstyle(0)", "mixstyle's alpha is 0, expected a number from 0.01 to 100"),
        ("mixstyle|mixup|mixstyle", "mixstyle comes after another of its kind"),
        ("flip|d4", "d4 comes after another of its kind"),
        ("d4(2)", "d4(2): expected d4()"),
        ("choice('stadard')", "choice's pool: unknown operation 'stadard': did you mean standard?"),
        ("choice(pool=3)", "choice's pool is 3"),
        ("fill('black')", "fill is 'black', expected one of reflect, edge"),
        ("fill(nam='edge')", "expected fill(name='reflect')"),
        ("rotate(", "stage 'rotate(': expected NAME or NAME(number, key=value)"),
        ("__import__('os').getcwd()", "expected NAME or NAME(number, key=value)"),
        ("rotate(open('x'))", "expected NAME or NAME(number, key=value)"),
        ("", "stage '': expected NAME"),
        ("mixup(True)", "mixup's alpha is True, expected a number"),
        ("choice(pool=[['rotate']])", "choice's pool: unknown operation ['rotate']"),
        ("choice(pool=[{}])", "choice's pool: unknown operation {}"),
        ("rotate(p=0.5, p=1.0)", "stage 'rotate(p=0.5, p=1.0)': p is given twice"),
        ("rotate(" + "-" * 9000 + "1)", "expected NAME or NAME(number, key=value)"),
    ],
)
def test_a_wrong_text_says_what_is_expected(text, message):
    with pytest.raises(PolicyError) as error:
        parse(text)
    assert message in str(error.value)
