"""Files that people take for checkpoints and that are not read here: what each one is, and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from merge.checkpoint.formats.format import Glimpse


@dataclass(frozen=True)
class Foreign:
    """A kind of file that is not read.

    Attributes:
        what: what it is, after "is".
        advice: what to do instead.
        signature: a regular expression that such a file's first bytes match.
        inside: for zip files, one that is found among the names of the members.
        names: globs of file names, in lower case, for what bytes do not tell.
        beside: such files lie beside checkpoints: a folder is not called by them.
    """

    what: str
    advice: str
    signature: bytes = b""
    inside: bytes = b""
    names: tuple[str, ...] = ()
    beside: bool = False

    def matches(self, look: Glimpse) -> bool:
        """Tell whether a file is of this kind."""
        return look.fits(self.signature, self.inside) or self.names_fit(look.name)

    def is_inside(self, look: Glimpse) -> bool:
        """Tell whether a zip file is of this kind."""
        return look.fits(b"", self.inside)

    def names_fit(self, name: str) -> bool:
        """Tell whether files of this kind are called so."""
        return any(fnmatch(name.lower(), glob) for glob in self.names)

    def __str__(self) -> str:
        return f"is {self.what}; {self.advice}"


_AGAIN = "download or copy it again"
_UNPACK = "unpack it and give the checkpoint that is in it"
_BEFORE = "merge the checkpoint that it was made of"
_KERAS = (
    "load it with Keras, model = keras.saving.load_model(FILE) (weights alone: model.load_weights(FILE)), and save "
    "{w.path: w.numpy() for w in model.weights} with safetensors.numpy.save_file"
)
_TENSORFLOW = "read it with tensorflow.train.load_checkpoint and save the arrays with safetensors.numpy.save_file"
_SAVE_TREE = (
    "save flax.traverse_util.flatten_dict(tree['params'], sep='.') (tree, where it is nothing but arrays) with "
    "safetensors.flax.save_file"
)
_FLAX = f"read it, tree = flax.serialization.msgpack_restore(open(FILE, 'rb').read()), and {_SAVE_TREE}"
_ORBAX = f"read it, tree = orbax.checkpoint.PyTreeCheckpointer().restore(FOLDER), and {_SAVE_TREE}"
_PICKLE = "load it with the program that wrote it, if you trust it, and save the arrays with numpy.savez"
_TEXT = rb"(?![^\x00]*\x00)"  # no zero byte among the first ones

FOREIGN: dict[str, Foreign] = {
    "empty": Foreign("empty (0 bytes)", _AGAIN, rb"\Z", beside=True),
    "zeros": Foreign(
        "nothing but zeros at its beginning", f"the download did not finish: {_AGAIN}", rb"\x00+\Z", beside=True
    ),
    "lfs": Foreign(
        "a pointer of Git LFS, not the weights",
        "fetch them with `git lfs pull` in the clone, or download the file itself",
        rb"version https?://(git-lfs|hawser)\.github\.com/spec|version https?://git-media\.io",
    ),
    "annex": Foreign("a pointer of git-annex", "fetch the file with `git annex get`", rb"/annex/objects/"),
    "dvc": Foreign(
        "a pointer of DVC", "fetch the file with `dvc pull`", rb"(md5: [0-9a-f]+\n)?outs:\s+- ", beside=True
    ),
    "html": Foreign(
        "an HTML page, not weights",
        "the download met a login or an error page: open the address in a browser, then download the file itself",
        rb"(?i)\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body|title|script|meta)\b",
        beside=True,
    ),
    "openvino": Foreign(
        "an OpenVINO model", _BEFORE, rb"\s*(<\?xml[^>]*>\s*)?<net\s", names=("openvino*.bin", "openvino*.xml")
    ),
    "xml": Foreign(
        "XML text, not weights",
        f"where it is an error message of a server, {_AGAIN}",
        rb"\s*<(\?xml|Error>)",
        beside=True,
    ),
    "json": Foreign(
        "JSON text, not weights",
        "give the checkpoint that it describes; where it is an error message of a server, download the file again",
        _TEXT + rb'\s*(\{\s*["}]|\[\s*["{\[\]])',
        beside=True,
    ),
    "gguf": Foreign(
        "a GGUF file (llama.cpp)",
        f"{_BEFORE}, or, under llama.cpp's names, save {{t.name: gguf.dequantize(t.data, t.tensor_type) for t in "
        "gguf.GGUFReader(FILE).tensors} with safetensors.numpy.save_file",
        rb"GGUF",
    ),
    "ggml": Foreign("a GGML file (llama.cpp or whisper.cpp, old)", _BEFORE, rb"lmgg|tjgg|fmgg|algg"),
    "hdf5": Foreign("an HDF5 file, as Keras writes", _KERAS, rb"\x89HDF\r\n\x1a\n"),
    "keras": Foreign("a Keras archive", _KERAS, inside=rb"\.weights\.h5"),
    "npy": Foreign(
        "a single numpy array without a name",
        "give it one: numpy.savez('OUT.npz', NAME=numpy.load('IN.npy')); one that holds objects needs "
        "allow_pickle=True and trust in who wrote it",
        rb"\x93NUMPY",
    ),
    "torchscript": Foreign(
        "a TorchScript program",
        "torch.save(torch.jit.load(FILE).state_dict(), OUT) writes its weights",
        inside=rb"/constants\.pkl",
    ),
    "export": Foreign(
        "a program of torch.export",
        "torch.save(dict(torch.export.load(FILE).state_dict), OUT) writes its weights",
        inside=rb"archive_format|serialized_exported_program\.json|/models/\w+\.json",
    ),
    "onnx": Foreign(
        "an ONNX graph",
        f"{_BEFORE}; or save {{t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(FILE).graph.initializer}} with "
        "safetensors.numpy.save_file",
        rb"\x08[\x01-\x0f](\x12[\x01-\x7f][A-Za-z_.-]{3}|[\x3a\x42])|....ORTM",
        names=("*.onnx", "*.onnx_data", "*.ort"),
    ),
    "tflite": Foreign("a TensorFlow Lite model", _BEFORE, rb"....TFL3", names=("*.tflite",)),
    "tensorrt": Foreign("a TensorRT engine", _BEFORE, rb"ftrt|ptrt", names=("*.engine",)),
    "matlab": Foreign(
        "a MATLAB file",
        "numpy.savez('OUT.npz', **{k: v for k, v in scipy.io.loadmat(FILE).items() if k[0] != '_'}) writes its arrays",
        rb"MATLAB 5\.0 MAT",
        beside=True,
    ),
    "sentencepiece": Foreign(
        "a SentencePiece tokenizer, not weights",
        "give the checkpoint beside it",
        rb"\n.{1,2}\n.(<unk>|<pad>|<s>|\xe2\x96\x81)",
        beside=True,
    ),
    "darknet": Foreign(
        "a Darknet weights file",
        "its tensors have no names: load it with its network and save the state dict with torch.save",
        rb"\x00{4}[\x01\x02]\x00{3}[\x00-\x05]\x00{3}",
    ),
    "gzip": Foreign("compressed by gzip", _UNPACK, rb"\x1f\x8b", beside=True),
    "xz": Foreign("compressed by xz", _UNPACK, rb"\xfd7zXZ\x00"),
    "zstd": Foreign("compressed by Zstandard", _UNPACK, rb"\x28\xb5\x2f\xfd"),
    "bzip2": Foreign("compressed by bzip2", _UNPACK, rb"BZh[1-9]1AY&SY"),
    "lz4": Foreign("compressed by LZ4", _UNPACK, rb"\x04\x22\x4d\x18"),
    "7z": Foreign("a 7z archive", _UNPACK, rb"7z\xbc\xaf\x27\x1c"),
    "rar": Foreign("a RAR archive", _UNPACK, rb"Rar!\x1a\x07"),
    "old-torch": Foreign(
        "a tar file of torch before 0.2",
        "load it with torch.load and save it again with torch.save",
        rb"(sys_info|pickle|storages|tensors)\x00.{240,256}ustar",
    ),
    "tar": Foreign("a tar archive", _UNPACK, rb".{257}ustar", beside=True),
    "tensorflow": Foreign(
        "a part of a TensorFlow checkpoint",
        _TENSORFLOW,
        rb"model_checkpoint_path:|\x00\x00[\x04-\x20]\x08",
        names=("*.ckpt*.index", "*.ckpt*.meta", "*.data-?????-of-?????", "variables.index"),
    ),
    "flax": Foreign(
        "a msgpack file, as Flax writes",
        _FLAX,
        rb"([\x81-\x8f]|\xde..|\xdf....)([\xa1-\xbf]|\xd9.)[A-Za-z_]",
        names=("*.msgpack",),
    ),
    "coreml": Foreign("a Core ML model", _BEFORE, names=("*.mlmodel", "*.mlpackage")),
    "saved-model": Foreign(
        "a part of a TensorFlow SavedModel",
        f"load it with tensorflow.saved_model.load; {_TENSORFLOW.removeprefix('read it with ')}",
        rb"\x08\x01\x12",
        names=("*.pb",),
    ),
    "orbax": Foreign(
        "a part of an Orbax checkpoint",
        _ORBAX,
        names=("manifest.ocdbt", "_checkpoint_metadata", "_metadata", "_sharding"),
    ),
    "pickle": Foreign(
        "a Python pickle that is not torch's (scikit-learn, joblib, detectron2)",
        _PICKLE,
        rb"\x80[\x01-\x05](?!.{0,9}\x8a\nl\xfc\x9cF)|\((dp|lp|i)\d*\n|c[a-z_.]+\n|\x78[\x01\x5e\x9c\xda]",
        names=("*.joblib",),
    ),
    "zip": Foreign(
        "a zip archive without a torch pickle (data.pkl) or arrays (.npy) in it",
        _UNPACK,
        rb"PK\x03\x04|PK\x05\x06",
        beside=True,
    ),
    "partial": Foreign(
        "a download that did not finish",
        _AGAIN,
        names=("*.part", "*.partial", "*.incomplete", "*.crdownload", "*.aria2", "*.download"),
        beside=True,
    ),
    "text": Foreign(
        "text, not weights",
        "give the checkpoint itself",
        _TEXT + rb"([\t\n\r\x20-\x7e]|[\xc2-\xf4][\x80-\xbf]{1,3})+[\xc2-\xf4]?\Z",
        beside=True,
    ),
}
