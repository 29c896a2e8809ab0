"""The splitting rules of published tokenizers, as their tokenizer.json files have them: pre_tokenizer, normalizer, ignore_merges.

Each stands under the name that llama.cpp's converter gives it; conversion/base.py and src/llama-vocab.cpp of llama.cpp say which models these are.
"""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def cased(ending, numbers):
    """The form of o200k: words whose capitals come first, with an English ending."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{UPPER}*{LOWER}+{ending}|{before}{UPPER}+{LOWER}*{ending}"
    return words + "|" + numbers + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
# Line breaks are themselves in these.
DEEPSEEK3 = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
SEED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
DEEPSEEK_LETTERS = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
DEEPSEEK_PUNCTUATION = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
KANA_AND_HAN, ASIAN = "[一-龥぀-ゟ゠-ヿ]+", "[一-龥ࠀ-一가-\ud7ff]+"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
EXAONE_MOE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
SPACES = "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def digits(individual):
    return {"type": "Digits", "individual_digits": individual}


def steps(*members):
    return {"type": "Sequence", "pretokenizers": list(members)}


def by(*patterns):
    return steps(*map(split, patterns), byte_level(False))


NFC = {"type": "NFC"}
PUBLISHED = {
    "gpt-2": (byte_level(True), None, False),
    "olmo": (byte_level(True), NFC, False),
    "smollm": (steps(digits(True), byte_level(True)), None, False),
    "command-r": (steps(digits(True), byte_level(True)), NFC, False),
    "llama-bpe": (by(LLAMA3), None, True),
    "dbrx": (steps(split(LLAMA3, "Removed", True), byte_level(False)), None, False),
    "qwen2": (by(LLAMA3.replace("{1,3}", "")), NFC, False),
    "stablelm2": (steps(split(LLAMA3.replace("{1,3}", ""), "Removed", True), byte_level(False)), None, False),
    "qwen35": (by(QWEN35), NFC, False),
    "gpt-4o": (by(cased(ENDING, r"\p{N}{1,3}")), None, False),
    "tekken": (by(cased("", r"\p{N}")), None, True),
    "deepseek-llm": (steps(*map(split, ("[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", ASIAN)), digits(True), byte_level(False)), None, False),
    "deepseek-coder": (steps(*map(split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", ASIAN)), digits(True), byte_level(False)), None, False),
    "deepseek-v3": (by(r"\p{N}{1,3}", KANA_AND_HAN, DEEPSEEK3), None, False),
    "falcon": (steps({"type": "Punctuation", "behavior": "Contiguous"}, byte_level(True), digits(False), split("[0-9][0-9][0-9]")), None, False),
    "bloom": (by(BLOOM), None, False),
    "viking": (steps(split(BLOOM), digits(True), byte_level(False)), None, False),
    "seed-coder": (by(SEED), None, False),
    "bailingmoe": (by(BAILING), None, False),
    "exaone-moe": (by(EXAONE_MOE), None, False),
    "minicpm5": (by(r"\p{N}{1,3}", LLAMA3.replace("{1,3}", "+")), None, True),
    "jais-2": (by(LLAMA3.removesuffix(r"|\s+(?!\S)|\s+") + SPACES), None, False),
}  # fmt: skip
