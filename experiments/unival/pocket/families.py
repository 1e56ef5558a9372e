"""Which tasks belong together: those of a family start each other's experts, and its merged models see all of them."""

IMAGE_TASKS = ("vqa", "caption", "grounding", "entailment")
VIDEO_TASKS = ("video-qa", "video-caption")
FAMILIES = (IMAGE_TASKS, VIDEO_TASKS)
