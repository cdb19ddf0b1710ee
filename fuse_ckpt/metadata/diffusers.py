"""The files by which diffusers and sentence-transformers say what a directory of models is."""

from __future__ import annotations

from fuse_ckpt.metadata.values import Opener, Unreadable, read_json_object, text_of
from fuse_ckpt.model import Metadata


def model_index(opener: Opener) -> Metadata:
    """A pipeline's class and the version of diffusers. Raises Unreadable."""
    index = read_json_object(opener)
    if "_class_name" not in index:
        raise Unreadable("names no _class_name: it is not a pipeline's")
    return Metadata(model=text_of(index["_class_name"]), version=text_of(index.get("_diffusers_version")))


def sentence_transformers_config(opener: Opener) -> Metadata:
    """Its class and version, where no config.json of a model lies beside it. Raises Unreadable."""
    config = read_json_object(opener)
    versions = config.get("__version__")
    version = versions.get("sentence_transformers") if isinstance(versions, dict) else None
    return Metadata(model=text_of(config.get("model_type")) or "SentenceTransformer", version=text_of(version))
