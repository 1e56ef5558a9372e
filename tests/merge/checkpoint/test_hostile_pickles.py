"""Hostile pickles: nothing they name is ever run, and they are refused by name; bombs neither crash nor hang."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merge import MergeError, load_checkpoint, open_checkpoint
from tests.merge.handmade import tensor_opcodes, text, write_zip
from tests.merge.running import Server


def name(module: str, attribute: str) -> bytes:
    """The GLOBAL opcode."""
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    """The STACK_GLOBAL opcode, whose names may have dots."""
    return text(module) + text(attribute) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    """The REDUCE opcode."""
    return function + b"(" + b"".join(arguments) + b"tR"


def shell(witness: Path) -> bytes:
    return text(f"touch {witness}")


def source(witness: Path) -> bytes:
    return text(f"open({str(witness)!r}, 'w')")


def system_of(module: bytes, witness: Path) -> bytes:
    """`getattr(module, "system")("touch witness")`."""
    return call(call(name("builtins", "getattr"), module, text("system")), shell(witness))


def importing(importer: bytes, witness: Path) -> bytes:
    """The importer is named and called first, and its result kept in the memo."""
    return call(importer, text("posix")) + b"q\xc80" + system_of(b"h\xc8", witness)


def partial_by_state(witness: Path) -> bytes:
    """A harmless `partial(print)` whose function is exchanged by BUILD, then called."""
    made = call(name("functools", "partial"), name("builtins", "print"))
    return call(made + b"(" + name("posix", "system") + b"(" + shell(witness) + b"t}}tb")


def pickled_pickle(witness: Path) -> bytes:
    inner = b"\x80\x02" + call(name("posix", "system"), shell(witness)) + b"."
    return b"B" + len(inner).to_bytes(4, "little") + inner


LIVE: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "global and reduce": ("posix.system", lambda w: call(name("posix", "system"), shell(w))),
    "os": ("os.system", lambda w: call(name("os", "system"), shell(w))),
    "stack global": ("posix.system", lambda w: call(stack_name("posix", "system"), shell(w))),
    "inst": ("os.system", lambda w: b"(" + shell(w) + b"ios\nsystem\n"),
    "obj": ("os.system", lambda w: b"(" + name("os", "system") + shell(w) + b"o"),
    "newobj": (
        "functools.partial",
        lambda w: call(name("functools", "partial") + b"(" + name("posix", "system") + shell(w) + b"t\x81"),
    ),
    "newobj with keywords": (
        "functools.partial",
        lambda w: call(name("functools", "partial") + name("posix", "system") + b"\x85}\x92", shell(w)),
    ),
    "a process": (
        "subprocess.Popen",
        lambda w: call(name("subprocess", "Popen"), b"](" + text("touch") + text(str(w)) + b"e"),
    ),
    "eval": ("builtins.eval", lambda w: call(name("builtins", "eval"), source(w))),
    "exec": ("builtins.exec", lambda w: call(name("builtins", "exec"), source(w))),
    "old name of eval": ("__builtin__.eval", lambda w: b"\x80\x02" + call(name("__builtin__", "eval"), source(w))),
    "open": ("builtins.open", lambda w: call(name("builtins", "open"), text(str(w)), text("w"))),
    "getattr and import": (
        "builtins.getattr",
        lambda w: system_of(call(name("builtins", "__import__"), text("posix")), w),
    ),
    "import": ("importlib.import_module", lambda w: importing(name("importlib", "import_module"), w)),
    "dotted name": (
        "collections._sys.modules.get",
        lambda w: importing(stack_name("collections", "_sys.modules.get"), w),
    ),
    "build": ("functools.partial", partial_by_state),
    "map": (
        "builtins.map",
        lambda w: call(
            name("builtins", "list"), call(name("builtins", "map"), name("posix", "system"), b"](" + shell(w) + b"e")
        ),
    ),
    "a pickle in a pickle": ("_pickle.loads", lambda w: call(name("_pickle", "loads"), pickled_pickle(w))),
    "within a persistent id": (
        "posix.system",
        lambda w: b"(" + text("storage") + call(name("posix", "system"), shell(w)) + b"tQ",
    ),
    "method of an allowed class": (
        "pathlib.Path.touch",
        lambda w: call(stack_name("pathlib", "Path.touch"), call(name("pathlib", "Path"), text(str(w)))),
    ),
    "argparse opens files": (
        "argparse.FileType",
        lambda w: call(name("argparse", "FileType"), text("w")) + text(str(w)) + b"\x85R",
    ),
    "through an attribute of the state": (
        "builtins.eval",
        lambda w: (
            name("argparse", "Namespace") + b")\x81}" + text("x") + call(name("builtins", "eval"), source(w)) + b"sb"
        ),
    ),
    "as a key": ("builtins.eval", lambda w: b"}" + call(name("builtins", "eval"), source(w)) + b"Ns"),
    "thrown away": ("builtins.eval", lambda w: call(name("builtins", "eval"), source(w)) + b"0N"),
}


def armed(path: Path, payload: bytes) -> Path:
    """A torch file with good weights and a payload before them."""
    weights = text("model") + b"}" + text("w") + tensor_opcodes((1,), (1,)) + b"ss"
    return write_zip(path, b"\x80\x04}" + text("extra") + payload + b"s" + weights + b".", {"0": bytes(4)})


@pytest.mark.parametrize("kind", LIVE)
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_run(tmp_path: Path, kind: str) -> None:
    refused, payload = LIVE[kind]
    witness = tmp_path / "witness"
    path = armed(tmp_path / "c.pt", payload(witness))
    for act in (open_checkpoint, load_checkpoint):
        with pytest.raises(MergeError) as error:
            act(path)
        assert f"c.pt: its pickle names {refused}," in str(error.value)
        assert "nothing was loaded" in str(error.value)
    assert not witness.exists()
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    for _ in range(500):  # a payload may start a process
        if witness.exists():
            return
        time.sleep(0.01)
    pytest.fail("the payload is a dud: this test could not fail")


def test_nothing_is_run_from_the_command_line(tmp_path: Path, command: Server) -> None:
    witness = tmp_path / "witness"
    path = armed(tmp_path / "c.pt", LIVE["global and reduce"][1](witness))
    good = tmp_path / "good.pt"
    torch.save({"model": {"w": torch.zeros(1)}}, good)
    out = tmp_path / "out.pt"
    for argv in (["inspect", path], ["interpolate", good, path, "--ratio", "0.5", "-o", out]):
        shown = command(*argv)
        assert shown.code == 2
        assert shown.err.count("\n") == 1
        assert "c.pt: its pickle names posix.system, which is not on the list" in shown.err
        assert "load it with the program that wrote it" in shown.err
    assert not witness.exists()
    assert not out.exists()


REFUSED: dict[str, tuple[str, ...]] = {
    "torch": (
        "load",
        "hub.load",
        "hub.load_state_dict_from_url",
        "storage._load_from_bytes",
        "serialization.load",
        "jit._serialization.load",
        "package.PackageImporter",
        "nn.modules.linear.Linear",
        "float_power",
        "_utils._rebuild_sparse_tensor",
        "_utils._rebuild_qtensor",
        "_utils._rebuild_wrapper_subclass",
        "_utils._rebuild_nested_tensor",
        "_utils._import_dotted_name",
        "_tensor._rebuild_from_type",
        "utils.data.dataloader.DataLoader",
        "FloatStorage.from_file",
        "storage.UntypedStorage.from_file",
    ),
    "numpy": ("load", "fromfile", "testing._private.utils.runstring", "core.multiarray.fromfile", "dtypes.loadDType.x"),
    "builtins": ("getattr", "compile", "__import__", "type", "input"),
    "os": ("remove",),
    "shutil": ("rmtree",),
    "subprocess": ("check_output",),
    "runpy": ("run_path",),
    "pydoc": ("locate",),
    "code": ("interact",),
    "timeit": ("timeit",),
    "cProfile": ("run",),
    "operator": ("attrgetter", "methodcaller"),
    "functools": ("reduce",),
    "ctypes": ("CDLL",),
    "socket": ("create_connection",),
    "webbrowser": ("open",),
    "multiprocessing": ("util.spawnv_passfds",),
    "pip": ("main",),
    "types": ("CodeType", "FunctionType"),
    "copyreg": ("add_extension",),
    "collections": ("namedtuple", "OrderedDict.pop"),
    "typing": ("ForwardRef", "get_type_hints"),
    "argparse": ("ArgumentParser", "Namespace.x"),
    "pathlib": ("Path.unlink",),
    "_codecs": ("decode",),
    "codecs": ("open",),
    "omegaconf": ("OmegaConf.load", "resolvers.env", "base.Container.pop"),
    "fairseq": ("checkpoint_utils.load_checkpoint_to_cpu", "models.unival.unival.UnIVALModel", "dataclass.utils.x"),
    "evil": ("collections.OrderedDict",),
    "xargparse": ("Namespace",),
    "torchx": ("FloatStorage",),
}


@pytest.mark.parametrize("refused", [f"{module}.{rest}" for module in REFUSED for rest in REFUSED[module]])
@pytest.mark.parametrize("opcode", [name, stack_name])
def test_names_off_the_list(tmp_path: Path, refused: str, opcode: Callable[[str, str], bytes]) -> None:
    """Merely to be named is enough, in whichever way module and attribute are cut."""
    for cut in range(1, refused.count(".") + 1):
        parts = refused.split(".")
        payload = opcode(".".join(parts[:cut]), ".".join(parts[cut:]))
        with pytest.raises(MergeError) as error:
            open_checkpoint(armed(tmp_path / "c.pt", payload))
        assert f"its pickle names {refused}," in str(error.value)


@pytest.mark.parametrize(
    "payload",
    [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"\x97", b"\x98", b"P0\n", b"\xff", b"\x00"],
    ids=["ext1", "ext2", "ext4", "next_buffer", "readonly_buffer", "persid", "no opcode", "zero"],
)
def test_opcodes_off_the_list(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(MergeError, match=r"c\.pt: its pickle"):
        open_checkpoint(armed(tmp_path / "c.pt", payload))


@pytest.mark.parametrize(
    "payload",
    {
        "call of a list": b"]" + b")R",
        "call of a call": call(call(name("argparse", "Namespace"))),
        "call of a tensor": tensor_opcodes((1,), (1,)) + b")R",
        "arguments no tuple": name("argparse", "Namespace") + b"]R",
        "state of a list": b"]}b",
        "state of a tensor": tensor_opcodes((1,), (1,)) + b"}" + text("x") + b"Nsb",
        "tensor without storage": call(name("torch._utils", "_rebuild_tensor_v2"), b"N" * 6),
        "tensor of too few arguments": call(name("torch._utils", "_rebuild_tensor_v2")),
        "parameter without tensor": call(name("torch._utils", "_rebuild_parameter"), b"N\x88N"),
        "storage of another class": b"("
        + text("storage")
        + name("argparse", "Namespace")
        + text("0")
        + text("cpu")
        + b"K\x01tQ0N"
        + call(
            name("torch._utils", "_rebuild_tensor_v2"),
            b"(" + text("storage") + name("argparse", "Namespace") + text("0") + text("cpu") + b"K\x01tQK\x00))\x89N",
        ),
        "items into a text": text("x") + b"(NNu",
        "key without value": b"}(Nu",
        "list as key": b"}]Ns",
        "memo never filled": b"h\x09",
        "mark never set": b"t" * 9,
        "more bytes than there are": b"B\xff\xff\xff\x7fx",
        "10^18 bytes": b"\x8e" + (10**18).to_bytes(8, "little"),
        "negative length": b"\x8b\xff\xff\xff\xff",
        "bad UTF-8": b"X\x01\x00\x00\x00\xff",
        "number of words": b"Ihello\n",
        "line without end": b"I1",
    }.items(),
    ids=lambda item: item[0],
)
def test_broken_pickles(tmp_path: Path, payload: tuple[str, bytes]) -> None:
    with pytest.raises(MergeError, match=r"c\.pt: its pickle"):
        open_checkpoint(armed(tmp_path / "c.pt", payload[1]))


BOMBS = {
    "deep tuple as key": b"}N" + b"\x85" * 300_000 + b"Ns",
    "shared tuple as key": b"}N" + b"2\x86" * 60 + b"Ns",
    "deep reference as key": b"}N" + b"Q" * 10**5 + b"Ns",
    "shared tuple in a set": b"\x8f(N" + b"2\x86" * 60 + b"\x90",
    "deep tuple in a frozen set": b"(N" + b"\x85" * 300_000 + b"\x91",
    "deep tuple in a called set": call(name("builtins", "set"), b"](N" + b"\x85" * 300_000 + b"e"),
    "deep tuple as key of a called dictionary": call(
        name("collections", "OrderedDict"), b"](" + b"]N" + b"\x85" * 300_000 + b"aNae"
    ),
    "shared tuple": b"N" + b"2\x86" * 60,
    "shared tuple as a shape": call(name("torch", "Size"), b"N" + b"2\x86" * 60),
    "deep list": b"]" * 10**5 + b"a" * (10**5 - 1),
    "deep tuple": b"N" + b"\x85" * 300_000,
    "deep state": (name("argparse", "Namespace") + b")\x81}" + text("x")) * 10**4 + b"N" + b"sb" * 10**4,
    "long number": b"\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6,
    "long number as key": b"}\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6 + b"Ns",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs(tmp_path: Path, command: Server, kind: str) -> None:
    """Small files that are deep, or huge when walked: an error or a result, soon; never a crash or a hang."""
    path = armed(tmp_path / "c.pt", BOMBS[kind])
    out = tmp_path / "out.pt"
    for argv in (["inspect", path], ["interpolate", path, path, "--ratio", "0.5", "-o", out, "--no-sync"]):
        shown = command(*argv, "--section", "model", seconds=10)
        assert shown.code in (0, 2), shown
        assert "Traceback" not in shown.err
        assert shown.code == 0 or shown.err.startswith("error: ")
    assert out.exists() == (shown.code == 0)
