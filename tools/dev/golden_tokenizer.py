"""Makes tests/golden/tokenizer.json.gz: a corpus of hard texts with the ids that Hugging Face gives them, and chats.

    python -m qwenref.tools.dev.golden_tokenizer MODEL.gguf tests/golden/tokenizer.json.gz

Transformers builds a tokenizer from the GGUF, but without a normaliser: GGUF has no field for it. Qwen2's own
tokenizer.json and Transformers' Qwen2Tokenizer have NFC, so NFC is put back here. llama.cpp, which does not
normalise, is asked about the NFC text; it differs where a text holds </s>, an ordinary token of Qwen2's that
llama.cpp makes a control token by its looks. It is the reference ("plain") for control tokens taken as text: there
Transformers, which got the token types from the GGUF in a simpler form, would take the user-defined <tool_call> as
text too.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

SENTENCES = r"""
What is 2+2?
The quick brown fox jumps over the lazy dog.
I'm sure they've said it's what she'd do, we'll see, you're right, can't
I'M SURE THEY'VE SAID IT'S WHAT SHE'D DO, WE'LL SEE, YOU'RE RIGHT
it'ſ odd
'S'T'RE'VE'M'LL'D 's't're've'm'll'd
don’t “quote” me…
Größenwahn, Straße, Ärger und Übermut; daß ist falsch.
Où est l'été? Ça va très bien, garçon!
¿Dónde está la niña? ¡Mañana!
Zażółć gęślą jaźń.
Příliš žluťoučký kůň úpěl ďábelské ódy.
İstanbul'da ışık söndü.
Þórður sá ævintýri.
Ελληνικά: πού είσαι;
Съешь ещё этих мягких булок.
Ще не вмерла — і не вмре!
שלום עולם, מה שלומך?
שָׁלוֹם
مرحبا بالعالم، كيف الحال؟
السَّلَامُ عَلَيْكُمْ
سلام دنیا، چطوری؟
नमस्ते दुनिया, क्या हाल है?
क्षत्रिय ज्ञान
আমি বাংলায় লিখি।
வணக்கம் உலகம்
ನಮಸ್ಕಾರ
สวัสดีชาวโลก วันนี้อากาศดี
ສະບາຍດີ
မင်္ဂလာပါ
សួស្តី
བཀྲ་ཤིས་བདེ་ལེགས།
你好，世界！今天天气怎么样？
人工智能正在改变世界。
我有3個蘋果和5隻貓。
こんにちは世界。カタカナとひらがな、漢字。
ﾊﾝｶｸ ｶﾀｶﾅ
안녕하세요 세계! 오늘은 2024년입니다.
ᄒᆞᆫ글
გამარჯობა მსოფლიო
Բարեւ աշխարհ
ሰላም ልዑል
ᏣᎳᎩ
ᠮᠣᠩᠭᠣᠯ
𐍈𐌰𐌽𐌳 𐌲𐌿𐍄
𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕞𝕒𝕥𝕙 𝑥²
ℌ ℑ Å Ω K
ﬁ ﬂ ﬀ ß ẞ
Ⅷ ½ ¾ ② ⑩ ௧௨௩ ٣٤٥ ०१२
👍👍🏽👍🏿
👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈 🏴‍☠️
🇩🇪🇫🇷🇯🇵
❤️ vs ❤
1️⃣2️⃣
🏴󠁧󠁢󠁳󠁣󠁴󠁿
🫠🫨🪿
( ͡° ͜ʖ ͡°) ¯\_(ツ)_/¯
Z̷̧̢͓̟a̴͎͒l̵̛̹g̶̭͂o̸͙͐
────────
▁▂▃▄▅▆▇█
machines/lambda-labs/forjar.yaml
<|im_start|>system\nhi<|im_end|>
a<|endoftext|>b
<|im_start|><|im_start|>
<|im_start
<|im_start |>
<|fim_prefix|>def f():<|fim_suffix|>\n<|fim_middle|>
<tool_call>{"name": "f"}</tool_call>
<|repo_name|>x/y<|file_sep|>a.py
[PAD151665]
<s></s><unk>
<|IM_START|>
<｜User｜>
x<|im_end|>\n .
<|vision_pad|>é<|box_end|>
"""

CODE = [
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "class A(B):\n\t@property\n\tdef x(self) -> int:\n\t\treturn self._x  # comment\n",
    'for (int i = 0; i < 10; ++i) {\r\n    printf("%d\\n", a[i] >> 2);\r\n}\r\n',
    "template <typename T>\nauto f(T&& x) -> decltype(x) { return std::forward<T>(x); }",
    'fn main() {\n    let v: Vec<u8> = vec![0x00, 0xFF];\n    println!("{:?}", v.iter().map(|b| b ^ 1));\n}',
    "const f = async ({a, b = 1, ...rest}) => await Promise.all([a?.b ?? `x${b}`, ...rest]);",
    "SELECT u.id, COUNT(*) AS n FROM users u LEFT JOIN t ON t.uid = u.id WHERE n >= 10 GROUP BY 1;",
    "<!DOCTYPE html>\n<div id='c'>&nbsp;&lt;p&gt;</div>\n<!-- x -->",
    '{"a": [1, 2.5e-10, null, true], "ключ": "\\u00e9\\n", "": {}}',
    "main :: IO ()\nmain = mapM_ (putStrLn . show) $ filter even [1..]\n",
    "#!/bin/sh\nset -eu; for f in *.txt; do echo \"${f%.txt}\" | sed 's/[^a-z]//g' >>out; done\n",
    "SUBROUTINE F(X)\n      REAL*8 X(*)\n      X(1) = 1.0D0\nC     comment\n      END",
    "(define (f x) (if (zero? x) '() (cons x (f (- x 1)))))",
    "$$\\int_{-\\infty}^{\\infty} e^{-x^2}\\,dx = \\sqrt{\\pi}$$ \\begin{align*} a &= b \\\\ \\end{align*}",
    "# Title\n\n* item\n  * sub\n\n```py\nx = 1\n```\n\n| a | b |\n|---|---|\n",
    "key: value\nlist:\n  - 'a'\n  - \"b\"\nanchor: &x {y: 1}\n",
    "mov eax, [ebp-0x8]\njne .L2\n.L2:\n\tret\n",
    "https://example.org/a/b?c=d&e=%20f#g user.name+tag@mail.example 192.168.0.1 ::1 C:\\Users\\x\\y.txt",
    "@@ -1,3 +1,4 @@\n-old line\n+new line\n context\n",
    "if(x&&y||!z){a+=b<<=2;c=d?e:f;}//**/--->>>===!==<=>...::",
]

NUMBERS = (
    "0 7 42 100 1000 12345678901234567890 1,234,567.89 1.234.567,89 1_000_000 1 000 000 3.14159 -1e-10 0x1F 0b1010 50%"
    " $9.99 12:34:56 2024-02-29T23:59:59Z +49 (0)30 1234567 ½+¼ x² H₂O 10⁻³ 1st 2nd n=10"
)

# Ranges of Unicode: scripts, symbols, rare planes, unassigned, private use, noncharacters.
RANGES = """
0000-001F 0020-007E 007F-009F 00A0-00FF 0100-024F 0250-02FF 0300-036F 0370-03FF 0400-052F 0530-058F 0590-05FF
0600-06FF 0700-074F 0780-07BF 07C0-07FF 0900-097F 0980-09FF 0A00-0A7F 0B80-0BFF 0C00-0C7F 0D00-0D7F 0E00-0E7F
0E80-0EFF 0F00-0FFF 1000-109F 10A0-10FF 1100-11FF 1200-137F 13A0-13FF 1400-167F 1680-169F 16A0-16FF 1780-17FF
1800-18AF 1AB0-1AFF 1D00-1D7F 1DC0-1DFF 1E00-1EFF 1F00-1FFF 2000-206F 2070-209F 20A0-20CF 20D0-20FF 2100-218F
2190-21FF 2200-22FF 2300-23FF 2460-24FF 2500-25FF 2600-27BF 27C0-27FF 2800-28FF 2900-2BFF 2C00-2C5F 2C80-2CFF
2DE0-2DFF 2E80-2FDF 2FF0-2FFF 3000-303F 3040-30FF 3100-312F 3130-318F 3200-33FF 3400-4DBF 4E00-9FFF A000-A4CF
A640-A69F A700-A7FF A840-A87F AA00-AA5F AB30-AB6F AC00-D7A3 D7B0-D7FF E000-F8FF F900-FAFF FB00-FB4F FB50-FDFF
FE00-FE0F FE20-FE2F FE30-FE6F FE70-FEFF FF00-FFEF FFF0-FFFF 10000-1007F 10140-1018F 102A0-102DF 10330-1034F
10400-1044F 10900-1091F 10A00-10A5F 11000-1107F 11580-115FF 12000-123FF 13000-1342F 16A40-16A6F 16FE0-16FFF
17000-187F7 1B000-1B0FF 1BC00-1BC9F 1D000-1D0FF 1D165-1D1FF 1D400-1D7FF 1E100-1E14F 1E4D0-1E4FF 1E900-1E95F
1EE00-1EEFF 1F000-1F0FF 1F100-1F1FF 1F300-1F5FF 1F600-1F64F 1F680-1F6FF 1F900-1F9FF 1FA70-1FAFF 1FB00-1FBFF
20000-2A6DF 2A700-2EBE0 2EBF0-2EE5D 2F800-2FA1F 30000-323AF 40000-400FF E0000-E007F E0100-E01EF F0000-F00FF
10FF00-10FFFF
""".split()  # noqa: SIM905

GLUE = [
    "",
    "",
    "",
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\t",
    " \n",
    "\n ",
    " \t ",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\u2028",
    "\x85",
]

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is 2+2?"}],
    [{"role": "system", "content": "You answer in one word."}, {"role": "user", "content": "Capital of France?"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "empty system"}],
    [{"role": "user", "content": ""}],
    [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好！"},
        {"role": "user", "content": "再见 👋🏽"},
    ],
    [{"role": "user", "content": "  spaces \n and\r\nlines\n"}, {"role": "assistant", "content": "\n\n"}],
    [
        {"role": "user", "content": CODE[0]},
        {"role": "assistant", "content": CODE[4]},
        {"role": "user", "content": CODE[5]},
    ],
    [{"role": "user", "content": "a"}, {"role": "system", "content": "late system"}, {"role": "user", "content": "b"}],
    [{"role": "system", "content": "é e\u0301 \u1112\u1161\u11ab"}, {"role": "user", "content": "مرحبا שלום नमस्ते"}],
    [{"role": "user", "content": "{{ 7 * 7 }} {% raw %} \ue000\ue001 | tojson"}],
    [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "get", "arguments": {"at": "Köln", "n": 1}}}],
        },
        {"role": "tool", "content": '{"t": 20}'},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "20 °C"},
    ],
    [{"role": "user", "content": f"question {n}" if n % 2 == 0 else "x"} for n in range(12)],
]


def corpus() -> list[str]:
    """The texts, the same on every run."""
    rng = random.Random(20240607)
    sentences = [line.replace("\\n", "\n") for line in SENTENCES.strip().splitlines()]
    texts = [*sentences, *CODE, *NUMBERS.split(), NUMBERS]
    texts += [
        c * n
        for c in [" ", "\n", "\t", "\r\n", "a", "=", "-", "0", "é", "中", "👍🏽", "\u0301", "\0"]
        for n in (1, 2, 3, 4, 7, 8, 16, 31, 64, 255)
    ]
    texts += [f"a{w * n}{b}" for w in (" ", "\n", "\t", " \n") for n in (1, 2, 3, 5, 9) for b in ("b", "1", ".", "")]
    texts += [
        "\ufeffBOM",
        "\ufeff",
        "a\ufeffb",
        "".join(map(chr, range(32))),
        "".join(map(chr, range(127, 161))),
        "x" * 3000,
        "Donaudampfschiff" * 60,
    ]
    for first, last in (map(lambda x: int(x, 16), r.split("-")) for r in RANGES):
        for length in (1, 3, 12, 40):
            texts.append("".join(chr(rng.randint(first, last)) for _ in range(length)))
    texts += [form for t in texts for form in (unicodedata.normalize("NFD", t),) if form != t and len(t) < 200]
    atoms = [w for t in [*sentences, *CODE] for w in t.split(" ") if w] + NUMBERS.split()
    while len(texts) < 2600:
        parts = (rng.choice(atoms) + rng.choice(GLUE) for _ in range(rng.randint(1, 12)))
        texts.append("".join(parts))
    return list(dict.fromkeys(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("golden", type=Path)
    args = parser.parse_args()

    import llama_cpp
    import tokenizers
    import transformers

    hf = transformers.AutoTokenizer.from_pretrained(args.model.parent, gguf_file=str(args.model.absolute()))
    texts = corpus()
    without_nfc = [hf(t).input_ids for t in texts]
    if hf.backend_tokenizer.normalizer is None:
        hf.backend_tokenizer.normalizer = tokenizers.normalizers.NFC()
    ids = [hf(t).input_ids for t in texts]
    llama = llama_cpp.Llama(str(args.model), vocab_only=True, verbose=False)
    nfc = [
        tokenizers.normalizers.NFC().normalize_str(t).encode() for t in texts
    ]  # Python's Unicode may be another version
    theirs = [llama.tokenize(t, add_bos=False, special=True) for t in nfc]
    plain = [llama.tokenize(t, add_bos=False, special=False) for t in nfc]

    rng = random.Random(7)
    sequences = [[rng.randrange(151643) for _ in range(rng.randint(1, 12))] for _ in range(200)]
    sequences += [
        [rng.randrange(256) for _ in range(rng.randint(1, 8))] for _ in range(300)
    ]  # single bytes: seldom UTF-8
    sequences += [i[k : k + 3] for i in ids[:400:7] for k in range(0, len(i), 5)] + [[151644, 872, 198, 151657, 151645]]
    golden: dict[str, Any] = {
        "command": "python -m qwenref.tools.dev.golden_tokenizer MODEL.gguf tests/golden/tokenizer.json.gz",
        "model": {"file": args.model.name, "sha256": hashlib.sha256(args.model.read_bytes()).hexdigest()},
        "versions": {m.__name__: m.__version__ for m in (transformers, tokenizers, llama_cpp)},
        "nfc_matters": [n for n, i in enumerate(ids) if i != without_nfc[n]],
        "llama_cpp_differs": [n for n, i in enumerate(theirs) if i != ids[n]],
        "texts": texts,
        "ids": ids,
        "plain": [[n, p] for n, p in enumerate(plain) if p != theirs[n]],
        "decoded": [
            [s, hf.decode(s, skip_special_tokens=False, clean_up_tokenization_spaces=False)] for s in sequences
        ],
        "chats": [
            [chat, prompt, hf.apply_chat_template(chat, add_generation_prompt=prompt, return_dict=False)]
            for chat in CHATS
            for prompt in (True, False)
        ],
    }
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    args.golden.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(texts)} texts; NFC matters for {len(golden['nfc_matters'])}")
    elsewhere = [texts[n] for n in golden["llama_cpp_differs"] if "</s>" not in texts[n]]
    print(
        f"llama.cpp differs for {len(golden['llama_cpp_differs'])}, {len(elsewhere)} of them without </s>: {elsewhere}"
    )


if __name__ == "__main__":
    main()
