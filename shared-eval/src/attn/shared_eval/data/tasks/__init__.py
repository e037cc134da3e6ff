"""Language-model tasks drawn by index in the tokens of ``text_tokenizer()``, each with the place of its evidence.

``functools.partial`` fixes a task's dials, and ``IndexStream`` draws it by index in as many workers as there are.
"""

from attn.shared_eval.data.tasks.chained_lookup import chained_lookup
from attn.shared_eval.data.tasks.k_shot import k_shot
from attn.shared_eval.data.tasks.kv_recall import kv_recall
from attn.shared_eval.data.tasks.list_reading import list_reading
from attn.shared_eval.data.tasks.multi_hop import multi_hop
from attn.shared_eval.data.tasks.passkey import passkey
from attn.shared_eval.data.tasks.prompt import Answer, Prompt, docs_tokens, pad_prompts

__all__ = [
    "Answer",
    "Prompt",
    "chained_lookup",
    "docs_tokens",
    "k_shot",
    "kv_recall",
    "list_reading",
    "multi_hop",
    "pad_prompts",
    "passkey",
]
