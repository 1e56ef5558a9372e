"""The words that a page uses, each with what it means there."""

GLOSSARY = {
    "average": "A merged model of all experts in equal shares.",
    "barrier": "How far scores between two models dip below the straight line between them.",
    "BatchNorm policy": "Where the running statistics of a merged model's BatchNorm layers come from: averaged as the "
    "weights are (average), measured again on data (recalibrate), or one expert's (from).",
    "chosen on val": "The point with the highest mean retention on the validation split, which no reported number is "
    "of; chosen on the reported split itself it would look too good.",
    "ensemble": "Several models that each answer, and whose predictions are averaged; not one set of weights.",
    "expert": "A model finetuned on a task. A task's own expert is the one finetuned on it.",
    "front": "The points that no other point beats on every task at once.",
    "Holm": "A correction for many comparisons: of all claims on this page that were tested together, the chance that "
    "even one is wrong stays below 5 %.",
    "ID": "In distribution: the test split, data like those that the experts were trained on.",
    "interval": "95 %: where the score would lie on other seeds and examples. From one training seed it is of the "
    "examples alone (evaluation noise), and says nothing of another training.",
    "mixture": "A set of experts that are merged with each other.",
    "not told apart": "A difference that chance explains well enough; it may be there, but these data do not show it.",
    "point": "One model: the shares of the experts in it, such as 0.40 a + 0.60 b.",
    "pretrained": "The model from which all experts were finetuned.",
    "ratio": "The share of the second of two experts; 0 is the first expert and 1 the second.",
    "retention": "What of its own expert's score a model keeps on a task: merged / expert, or expert / merged where "
    "lower scores are better. 100 % is the expert itself. Where scores are zero or negative it is the share of the "
    "expert's gain over the pretrained model. Unlike scores it can be averaged over tasks.",
    "seed": "One training of the experts. Several differ in the order of their data, and show what chance does.",
    "series": "Points that differ in their shares alone, and have method, parameters and kind of experts in common.",
    "share": "The weight of an expert in a mixture; shares sum to 1.",
    "shifted": "Data unlike those of training, such as noisy or new kinds of inputs: out of distribution (OOD).",
    "split": "A part of a task's data: val to choose by, test to report, others shifted.",
    "straight line": "What scores would be if they changed evenly from one expert's to the other's.",
}
