"""Our models as models of Hugging Face's transformers.

Importing this module registers them: `AutoConfig`, `AutoModelForCausalLM` and `AutoModelForSeq2SeqLM` then know the
model types "exlstm" and "exlstm_seq2seq", and `generate`, `pipeline`, `Trainer` and `save_pretrained` work as they do
for any other model there. `from_run` takes what `exlstm train lm`, `translate` or `summarize` made,
`ExlstmForCausalLM.from_exlstm` a `LanguageModel`, and `to_exlstm` gives it back.
"""

try:
    import transformers
except ImportError:
    raise ImportError(
        "exlstm.interop.transformers needs the package transformers: pip install 'exlstm[transformers]'"
    ) from None
if transformers.__version__.split(".")[0] != "5":
    raise ImportError(
        f"exlstm.interop.transformers needs transformers 5, found {transformers.__version__}: "
        "pip install 'exlstm[transformers]'"
    )

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from exlstm.interop.transformers.cache import ExlstmCache
from exlstm.interop.transformers.causal import ExlstmForCausalLM
from exlstm.interop.transformers.config import ExlstmConfig, ExlstmSeq2SeqConfig
from exlstm.interop.transformers.runs import from_run
from exlstm.interop.transformers.seq2seq import ExlstmForSeq2SeqLM
from exlstm.interop.transformers.tokenizer import fast_tokenizer

AutoConfig.register(ExlstmConfig.model_type, ExlstmConfig, exist_ok=True)
AutoConfig.register(ExlstmSeq2SeqConfig.model_type, ExlstmSeq2SeqConfig, exist_ok=True)
AutoModelForCausalLM.register(ExlstmConfig, ExlstmForCausalLM, exist_ok=True)
AutoModelForSeq2SeqLM.register(ExlstmSeq2SeqConfig, ExlstmForSeq2SeqLM, exist_ok=True)

__all__ = [
    "ExlstmCache",
    "ExlstmConfig",
    "ExlstmForCausalLM",
    "ExlstmForSeq2SeqLM",
    "ExlstmSeq2SeqConfig",
    "fast_tokenizer",
    "from_run",
]
