"""Audio captioning: one sentence about a sound (AudioCaps, Clotho). The published models are asked about a video."""

from dataclasses import replace

from unival_core.tasks import caption, video_caption

TASK = replace(caption.TASK, name="audio-caption", medium="audio", prompt=video_caption.prompt)
