"""Makes tokenizer.json out of conversations.jsonl: byte-level BPE in the form of Qwen's. Needs only `pip install tokenizers`."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 1024
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Qwen's: contractions, words with one leading character, single digits, punctuation, line ends, white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

here = Path(__file__).parent
texts = []
for line in (here / "conversations.jsonl").read_text(encoding="utf-8").splitlines():
    for turn in json.loads(line)["turns"]:
        texts.append(f"{turn['role']}\n{turn['content']}\n")

tokenizer = Tokenizer(models.BPE())
tokenizer.normalizer = normalizers.NFC()
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False),
])
tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
tokenizer.train_from_iterator(texts, trainer)
tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
assert tokenizer.get_vocab_size() == VOCABULARY, tokenizer.get_vocab_size()
(here / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
