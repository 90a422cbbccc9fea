import pytest

from surprise.hypotheses import Prompts, append, clean, keep_latest, parse, same_form, word_count


@pytest.mark.parametrize(
    "text,sentence",
    [
        ("  The dog  jumps\tover. ", "The dog jumps over."),
        ("Hypothesis: the dog jumps", "the dog jumps"),
        ("1. Hypothesis 2: the dog jumps\nbecause it can", "the dog jumps"),
        ("\n\n- the cat sits", "the cat sits"),
        ('"Prediction:"\nthe cup falls', "Prediction:"),
        ("Answer: 'the cup falls.'", "the cup falls."),
        ("1.5 litres of milk spill", "1.5 litres of milk spill"),
        ("the cup<|im_end|> falls<|video_pad|>", "the cup falls"),
        ("the\x00 cup\x1b[31m falls", "the cup [31m falls"),
        ("un café se renverse", "un café se renverse"),
        ("杯子掉了", "杯子掉了"),
        ("assistant\nthe cup falls", "assistant"),
        ("Hypothesis:", ""),
        ("...", ""),
        ("", ""),
    ],
)
def test_clean(text, sentence):
    assert clean(text) == sentence


def test_hypotheses_are_cleaned_deduplicated_and_padded():
    parsed = parse(
        ["The dog jumps.", "the DOG jumps", "  ", "a cat sleeps on"], [True, True, True, False]
    )
    assert parsed.texts == ("The dog jumps.", "a cat sleeps on", "", "")
    assert parsed.cut_off == (False, True, False, False)
    assert (parsed.count, parsed.duplicates, parsed.empty) == (2, 1, 1)


def test_duplicates_can_stay_and_are_counted_all_the_same():
    parsed = parse(["a cat", "A cat!", "a dog"], dedup=False)
    assert parsed.texts == ("a cat", "A cat!", "a dog")
    assert parsed.duplicates == 1


def test_same_form():
    assert same_form("It's  RED, isn't it?") == same_form("it s red isn t it")
    assert same_form("red ball") != same_form("ball red")


def test_history_grows_by_sentences_and_loses_the_oldest():
    history = append(append((), "a man runs"), "He falls!")
    assert history == ("Then, a man runs.", "Then, He falls!")
    assert append(history, "") == history
    assert word_count(" ".join(history)) == 7
    assert keep_latest(history, 7) == history
    assert keep_latest(history, 6) == ("Then, He falls!",)
    assert keep_latest(history, 1) == ("Then, He falls!",)  # the newest one always stays


def test_texts_enter_prompts_untouched():
    nasty = "{statement.__class__} {0} %s \\1 {history}"
    prompts = Prompts(history="H: {history}", probe="{statement}?", summary="S: {history}")
    assert prompts.history_text(nasty) == "H: " + nasty
    assert prompts.probe_text(nasty) == nasty + "?"
    assert prompts.summary_text(nasty) == "S: " + nasty
    assert prompts.history_text("") == ""


def test_prompts_without_their_place_are_refused():
    with pytest.raises(ValueError, match=r"prompts.probe must contain \{statement\}"):
        Prompts(probe="Is it true?")
    with pytest.raises(ValueError, match=r"prompts\.predict must not be empty"):
        Prompts(predict=" ")
