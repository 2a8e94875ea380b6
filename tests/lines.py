"""Words of command lines, each with what is known of it: right, wrong, or it depends."""

from hypothesis import strategies as drawn

LONG, EMOJI, BYTES = "x" * 5000, "🐈 ~*", "a\udcff"  # the last is how Python reads a byte that is no UTF-8
ODD = (
    "",
    " ",
    "half",
    "0,5",
    "nan",
    "inf",
    "-inf",
    "1e99",
    "-1",
    "0",
    "1.5",
    "true",
    "None",
    "٣x",
    "a:b:c",
    LONG,
    EMOJI,
    BYTES,
)


def table(*, right=(), wrong=(), open=()):
    """List (word, whether it is right); None where it depends on the rest of the line."""
    return [(word, True) for word in right] + [(word, False) for word in wrong] + [(word, None) for word in open]


def whole(right, low, *, wrong=(), open=()):
    """Whole numbers of at least `low`."""
    odd = {"", " ", "half", "0,5", "nan", "inf", "1e99", "1.5", "true", "٣x", LONG, EMOJI, BYTES, *wrong}
    return table(right=right, wrong=sorted(odd | {str(low - 1), "99999999999999999999", "-99999999999999999999"}), open=open)


def numbers(right, *, wrong=(), open=()):
    odd = {"", " ", "half", "0,5", "nan", "inf", "-inf", "1e99", "true", "٣x", LONG, EMOJI, BYTES, *wrong}
    return table(right=right, wrong=sorted(odd), open=open)


FILES = (f"{{w}}/{LONG}", "{w}", "{w}/gone", "/dev/null", "/proc/self/mem", "/proc/version", "", " ", EMOJI, BYTES, "a\nb")
NETS_RIGHT = ("build", "prints", "tuple_out", "dict_out", "frozen")
NETS_WRONG = (
    *("raises", "raises_many_lines", "recursion", "opens", "exits", "exits_well", "needs", "nothing", "a_class", "text"),
    *("number", "absent", "forward_raises", "forward_exits", "double"),
)
NETS_INSPECTED = (
    "no_parameters",
    "no_layers",
    "two",
    "one",
    "none_out",
    "text_out",
    "scalar_out",
    "one_row",
    "integers",
    "nan_out",
)
NETS_OPEN = ("five", "grey", "lazy", "scripted", "nan", "meta")
SCRIPTS = ("syntax", "imports", "exits", "argparse", "raises", "empty", "bytes", "gone")
SPECS_WRONG = (
    *("resnet18", "torchvision:", "torchvision:resnet18000", "timm:nothing", "nowhere.nets:build", "a:b:c", ":", ":build", "."),
    *(
        ".nets:build",
        "npz:{w}/test.npz",
        "spectrim:",
        "spectrim.demo:demo_image",
        "{w}/nets.py",
        "{w}/nets.py:",
        "{w}/folder.py:build",
    ),
    *(
        "{w}/hello.txt:build",
        "os:getcwd",
        "sys:exit",
        "builtins:input_",
        "",
        " ",
        "\n",
        LONG,
        f"{LONG}:{LONG}",
        EMOJI,
        BYTES,
        f"{EMOJI}:b",
    ),
)
MODELS = table(
    right=[f"{{w}}/nets.py:{name}" for name in NETS_RIGHT],
    wrong=[f"{{w}}/nets.py:{name}" for name in NETS_WRONG]
    + [f"{{w}}/script_{name}.py:build" for name in SCRIPTS]
    + [*SPECS_WRONG],
    open=[f"{{w}}/nets.py:{name}" for name in (*NETS_INSPECTED, *NETS_OPEN)],
)
WEIGHTS = table(
    right=["{w}/w.safetensors", *(f"{{w}}/{name}.pth" for name in ("w", "parallel", "half", "checkpoint", "tensors"))],
    wrong=[
        *("{w}/other.safetensors", "{w}/cut.safetensors", "{w}/test.npz", "{w}/hello.txt", "{w}/good.parquet", *FILES),
        *(f"{{w}}/{name}.pth" for name in ("renamed", "optimizer", "numbers", "words", "complex", "list", "tensor", "text")),
        *(f"{{w}}/{name}.pth" for name in ("nothing", "cut", "script")),
    ],
    open=["{w}/whole.pth", "{w}/nan.pth"],
)
COUNTS = {
    "test": 40,
    "train": 60,
    "held": 24,
    "whole": 40,
    "flat": 40,
    "good": 20,
    "four": 20,
    "floats": 30,
    "batches": 20,
    "others": 24,
}
NPZ_RIGHT = ("test", "train", "held", "whole")
NPZ_WRONG = (
    *("none", "infinite", "giant", "half", "words", "truth", "hot", "fewer", "scalar", "integers", "planes", "nan", "pixels"),
    *("letters", "wide", "unlabelled", "pickles", "array", "cut", "damaged", "nothing", "json", "zip", "gone"),
)
TABLES_WRONG = (
    "columns",
    "unlabelled",
    "paths",
    "holes",
    "gaps",
    "texts",
    "words",
    "none",
    "lists",
    "text",
    "nothing",
    "cut",
    "gone",
)
GIVEN_WRONG = (
    *("raises", "data_raises", "data_later", "data_number", "data_text", "data_triples", "data_numpy", "data_empty"),
    *("data_no_example", "data_fewer_labels", "data_scalar", "data_nan", "data_exits", "exits", "needs", "nothing", "number"),
)
GIVEN_OPEN = ("batches", "others", "generator", "data_one_hot", "data_float", "data_high", "data_shapes", "data_integers")
DATA = table(
    right=[*(f"npz:{{w}}/{name}.npz" for name in NPZ_RIGHT), "parquet:{w}/good.parquet", "imagefolder:{w}/four"],
    wrong=[
        *(f"npz:{{w}}/{name}.npz" for name in NPZ_WRONG),
        *(f"parquet:{{w}}/{name}.parquet" for name in TABLES_WRONG),
        *(f"imagefolder:{{w}}/{name}" for name in ("damaged", "huge", "empty", "flatfolder", "gone", "hello.txt", "test.npz")),
        *(f"{{w}}/nets.py:{name}" for name in GIVEN_WRONG),
        *(
            "folder:{w}/four",
            "imagefolders:{w}/four",
            "npz:",
            "npz",
            "npz:{w}",
            "parquet:{w}",
            "fashion-mnist:{w}",
            "csv:{w}/a.csv",
        ),
        *("fashion-mnist:{w}/hello.txt", "npz:/dev/null", "parquet:/dev/null", "npz:/proc/version", "parquet:/proc/version"),
        *(
            "imagefolder:/proc/self/fdinfo",
            "torchvision:resnet18",
            "{w}/test.npz",
            "",
            " ",
            LONG,
            f"npz:{LONG}",
            EMOJI,
            f"npz:{BYTES}",
        ),
    ],
    open=[
        *(f"npz:{{w}}/{name}.npz" for name in ("one", "high", "below", "floats", "flat")),
        *(f"imagefolder:{{w}}/{name}" for name in ("five", "three", "hidden", "deep")),
        *(f"{{w}}/nets.py:{name}" for name in GIVEN_OPEN),
    ],
)
SHAPES = table(
    right=["1,3,8,8", "2,3,8,8", "1, 3, 8, 8", "\uff11,3,8,8"],
    wrong=[
        *(
            "32,32",
            "8",
            "3,8,8",
            "1,3,8",
            "1,3,8,8,8",
            "1,4,8,8",
            "0,3,8,8",
            "1,3,-8,8",
            "1,3,1,1",
            "1x3x8x8",
            "1,3,8,8,",
            "1,3,8.5,8",
        ),
        *("1,3,99999999,99999999", "99999999999999999999,3,8,8", "1;3;8;8", "1,3,100000,8", "(1,3,8,8)", *ODD),
    ],
    open=["1,3,9,9", "1,1,8,8", "1,3,8,9"],
)
MEANS = table(
    right=["0.5", "0.4,0.5,0.6", "0.4, 0.5 ,0.6", "1e-1"],
    wrong=["0.5,0.5", "0.5;0.5;0.5", "a,b,c", ",", "0.5,,0.5", *(set(ODD) - {"0", "-1", "1.5"})],
    open=["0", "-1", "100"],
)
STDS = table(
    right=["0.5", "0.2,0.3,0.2"], wrong=["0.5,0.5", "0", "-1", "0.2,0,0.2", "0.2,nan,0.2", *(set(ODD) - {"1.5"})], open=["1.5"]
)
METHODS = table(
    right=[
        "ChannelSVD",
        "ChannelSVD,SpatialSVD",
        "ChannelSVD, InputSVD",
        "ChannelSVD,ChannelSVD",
        "Tucker2,ChannelSVD",
        "TiledSVD,ChannelSVD",
    ],
    wrong=[
        "channelsvd",
        "ChanelSVD",
        "SVD",
        ",",
        "ChannelSVD,",
        "ChannelSVD;SpatialSVD",
        "torch.nn:Linear",
        "{w}/nets.py:build",
        "{w}/nets.py:raises",
        "{w}/nets.py:exits",
        "Knapsack",
        *(set(ODD)),
    ],
)
SEARCHES = table(
    right=["Knapsack", "Uniform", "Energy", "Greedy"],
    wrong=[
        "knapsack",
        "Knap",
        "ChannelSVD",
        "Knapsack,Uniform",
        "{w}/nets.py:build",
        "{w}/nets.py:exits",
        "torch.nn:Module",
        *(set(ODD)),
    ],
)
PLANS = table(
    right=["{w}/run/plan.json"],
    wrong=[
        "{w}/renamed.json",
        "{w}/ranks.json",
        "{w}/run/report.json",
        "{w}/hello.txt",
        "{w}/test.npz",
        "{w}/kinds.json",
        "{w}/list.json",
        *FILES,
    ],
    open=["{w}/none.json"],
)
RUNS = table(
    right=["{w}/run", "{w}/run/"],
    wrong=[
        "{w}/empty",
        "{w}/mine",
        "{w}/run/plan.json",
        "{w}/broken",
        "{w}/nobody",
        "{w}/planless",
        "{w}/cutrun",
        "{w}/foreign",
        "{w}/letters",
        *FILES,
    ],
)
OUTS = table(
    right=["{h}/out", "out", "{h}/a/b/c", "{h}/new", "{h}/out 🐈", "{h}/o:u[t]"],
    wrong=[
        *(
            "{w}/mine",
            "{w}/hello.txt",
            "{w}",
            "",
            ".",
            "/",
            "/proc/x",
            "/proc/self/x",
            "/sys/x",
            "/dev/null",
            "/dev/null/x",
            "{w}/hello.txt/x",
        ),
        *("{h}/busy", f"{{h}}/{LONG}", "{h}/" + "n" * 250, "{h}/taken", BYTES),
    ],
    open=[" ", "{w}/run", EMOJI],
)
FLAG = [("", True)]
COMMON = {
    "--data": DATA,
    "--calibration": DATA,
    "--selection": DATA,
    "--weights": WEIGHTS,
    "--input": SHAPES,
    "--mean": MEANS,
    "--std": STDS,
    "--seed": whole(["0", "7", "\uff11"], 0, open=["4294967296"]),
    "--device": table(right=["cpu"], wrong=["cuda:99", "meta", "warp", "mps", "cpu:", "CPU", "hpu", "0", *(set(ODD) - {"0"})]),
    "--trust-pickle": FLAG,
    "--keep": numbers(["0.9", "0.6", "1", "0.\uff12"], wrong=["0", "-1", "1.5", "50%"], open=["0.01", "1e-9"]),
    "--at-most": numbers(["9e9:macs", "1e9:bytes"], wrong=["0:macs", "4e6", "x:bytes", "1:flops"], open=["1:params"]),
    "--metric": table(right=["params", "macs", "bytes"], wrong=["flops", "MACs", "param", *ODD]),
    "--plan": PLANS,
    "--methods": METHODS,
    "--search": SEARCHES,
    "--exclude": table(right=["0", "5"], wrong=["fc*", "[", *(set(ODD) - {"0"})], open=["*"]),
    "--multiple-of": whole(["1", "2"], 1, open=["1000"]),
    "--images": whole(["16", "1000", "1"], 1),
    "--batch": whole(["8", "16"], 1, open=["1", "1000"]),
    "--optimizer": table(right=["sgd", "adamw"], wrong=["SGD", "adam", *ODD]),
    "--rate": numbers(["0.001"], wrong=["0", "-1", "1e9"], open=["1.5"]),
    "--weight-decay": numbers(["0", "0.1"], wrong=["-1", "1e9"]),
    "--smoothing": numbers(["0", "0.1"], wrong=["-1", "1.5", "1"]),
    "--crop": whole(["0", "2"], 0, open=["100"]),
    "--no-flip": FLAG,
    "--distill": numbers(["0", "0.5", "1"], wrong=["-1", "1.5"]),
    "--resume": FLAG,
    "--json": FLAG,
    "--quiet": FLAG,
    "--verbose": FLAG,
    "--track": table(wrong=["wandb:x", "tensorboard", "mlflow:", ""]),
    "--out": OUTS,
}
RUNTIME = {
    "--target": table(right=["torch"], wrong=["ONNX", "Torch", "torch,torch", "cuda", *ODD]),
    "--threads": whole(["1", "2"], 1, wrong=["1025"]),
}
COMPRESS = (
    COMMON
    | RUNTIME
    | {
        "--max-drop": numbers(["50", "1.5", "0"], wrong=["-1", "100"]),
        "--no-refit": FLAG,
        "--batchnorm": FLAG,
        "--reconstruct": FLAG,
        "--mirror": FLAG,
        "--finetune-epochs": whole(["1", "0"], 0),
    }
)
TRAIN = COMMON | {
    "--epochs": whole(["1", "2"], 1),
    "--every": whole(["1"], 1, open=["2", "100"]),
    "--warmup": whole(["0"], 0, open=["1", "100"]),
    "--tighten": whole(["0", "1"], 0, open=["100"]),
    "--replan": whole(["0"], 0, open=["1"]),
}
OPTIONS = {
    "compress": COMPRESS,
    "train": TRAIN,
    "evaluate": {
        "--data": DATA,
        "--images": whole(["7", "1000", "1"], 1),
        "--methods": table(wrong=["{w}/nets.py:gone", "a:b:c", "nowhere:x"], open=["ChannelSVD", ""]),
        "--device": COMMON["--device"],
        "--trust-pickle": FLAG,
        **{name: COMMON[name] for name in ("--json", "--quiet", "--verbose")},
    },
    "inspect": {
        **{name: COMMON[name] for name in ("--input", "--weights", "--trust-pickle", "--json", "--quiet", "--verbose")},
        "--target": RUNTIME["--target"],
    },
    "demo": {name: COMMON[name] for name in ("--out", "--device", "--json", "--quiet", "--verbose", "--track")} | RUNTIME,
}
BASE = {
    "compress": {
        "--data": "npz:{w}/test.npz",
        "--calibration": "npz:{w}/train.npz",
        "--methods": "ChannelSVD",
        "--out": "{h}/out",
    },
    "train": {
        "--data": "npz:{w}/test.npz",
        "--calibration": "npz:{w}/train.npz",
        "--methods": "ChannelSVD",
        "--out": "{h}/out",
        "--epochs": "1",
        "--batch": "16",
    },
    "evaluate": {},
    "inspect": {"--input": "1,3,8,8"},
    "demo": {"--out": "{h}/out"},
}
ARGUMENT = {"compress": MODELS, "train": MODELS, "inspect": MODELS, "evaluate": RUNS}
BUDGETS = {
    "compress": [
        {"--keep": "0.6"},
        {"--keep": "0.9", "--metric": "params"},
        {"--max-drop": "50"},
        {"--plan": "{w}/run/plan.json"},
    ],
    "train": [{}, {"--keep": "0.7", "--every": "1"}, {"--plan": "{w}/run/plan.json", "--every": "1"}],
}
SCRAMBLES = ("repeat", "valueless", "unknown", "misspelt", "extra", "missing")


@drawn.composite
def lines(draw):
    """Return command, options in order as (name, word, whether it is right), and what was done to the line as a whole."""
    command = draw(drawn.sampled_from(["compress"] * 6 + ["train"] * 3 + ["evaluate"] * 2 + ["inspect"] * 2 + ["demo"]))
    options, words = OPTIONS[command], dict(BASE[command])
    budget = draw(drawn.sampled_from(BUDGETS.get(command, [{}])))
    words |= budget
    if "--plan" in budget:
        words.pop("--methods", None)
    words = {name: (word, True) for name, word in words.items()}
    if command in ARGUMENT:
        first = next(entry for entry in ARGUMENT[command] if entry[1])
        words = {"": draw(drawn.sampled_from(ARGUMENT[command])) if draw(drawn.integers(0, 3)) == 0 else first} | words
    for _ in range(draw(drawn.sampled_from((0, 1, 1, 1, 1, 2, 2, 3)))):
        name = draw(drawn.sampled_from(sorted(options)))
        verdict = draw(drawn.sampled_from((True, False, False, None)))
        entries = [entry for entry in options[name] if entry[1] is verdict] or options[name]
        words[name] = draw(drawn.sampled_from(entries))
    if command in ("compress", "train") and "--methods" not in words and "--plan" not in words:
        words["--methods"] = ("ChannelSVD", True)  # CP's fits take most of the time
    scramble = draw(drawn.sampled_from((None,) * 12 + SCRAMBLES))
    return command, [(name, *entry) for name, entry in words.items()], scramble
