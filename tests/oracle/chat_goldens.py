"""tests/goldens/text/templates.json: chat templates of many models rendered by transformers.
tests/goldens/text/chat_pictures.json: chats with pictures, encoded by the processors of the three families."""

import json
from pathlib import Path

import numpy
import transformers
import trl
from oracle_common import GOLDENS, ROOT, versions, write_json
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

SHIPPED = Path(trl.__file__).parent / "chat_templates"
NAMES = ["cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "glm4moe", "idefics3", "lfm2", "lfm2_2_5_vl",
         "llama3", "llama3_1", "llava_next", "phi3", "phi3_5", "qwen2_5", "qwen2_5_vl", "qwen2_5_vl_training", "qwen3", "qwen3_vl", "smolvlm",
         "nemotron_3_nano"]
BY_HAND = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "smollm2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI "
               "assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
               "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
              "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == "
              "'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and "
              "add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "mistral": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
               "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ "
               "'[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + "
               "' ' }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
              "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if "
              "loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + "
              "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + "
              "'[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
              "{% endif %}{% endfor %}",
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def text(value):
    return {"type": "text", "text": value}


IMAGE = {"type": "image", "image": "a.png"}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {"x": 1, "y": [1.5, True, None, "é\"<\n"]}}}
CHATS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "  Hi é😀 \n"}, {"role": "assistant", "content": " Yes  "},
     {"role": "user", "content": "ok"}],
    [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2"}],
    [{"role": "user", "content": [IMAGE, text("What is it?")]}],
    [{"role": "system", "content": [text("Sys")]}, {"role": "user", "content": [text("a "), IMAGE, text(" b"), IMAGE]},
     {"role": "assistant", "content": [text("fine")]}, {"role": "user", "content": [text("more")]}],
    [{"role": "user", "content": [text("only "), text("text")]}],
    [{"role": "user", "content": "w?"}, {"role": "assistant", "tool_calls": [CALL]},
     {"role": "tool", "tool_call_id": "abcdefghi", "name": "f", "content": "42"}, {"role": "assistant", "content": "It is 42."}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "weird", "content": "x"}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "{{ braces }} {% if %} <|im_end|> </s> [INST]"}, {"role": "assistant", "content": "it's \"quoted\" \\"}],
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "because"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b.png"}}, text("url")]}],
]


def rendered(template, messages, generation):
    """As processors and tokenizers call the template: without members that are null, pictures by one name."""
    chat = []
    for message in messages:
        message = {key: value for key, value in message.items() if value is not None}
        if isinstance(message.get("content"), list):
            message["content"] = [{"type": "image", "url": part["image_url"]["url"]} if part["type"] == "image_url" else part
                                  for part in message["content"]]
        chat.append(message)
    try:
        return render_jinja_template([chat], chat_template=template, add_generation_prompt=generation, **TOKENS)[0][0]
    except Exception:  # whatever a template can raise
        return None


def templates():
    sources = {name: (SHIPPED / f"{name}.jinja").read_text() for name in NAMES} | BY_HAND
    made = []
    for name, source in sources.items():
        cases = [[rendered(source, messages, generation) for generation in (False, True)] for messages in CHATS]
        assert sum(case is not None for pair in cases for case in pair) >= 8, name
        made.append({"name": name, "template": source, "rendered": cases})
    return {"versions": versions("transformers", "jinja2", "trl"), "tokens": TOKENS, "chats": CHATS,
            "about": "rendered[chat] = [without, with generation prompt]; null where the template raises", "templates": made}


# ---- pictures ----

def vocabulary(tokens, **named):
    """The quickstart's vocabulary with the family's special tokens."""
    tokenizer = Tokenizer.from_file(str(ROOT / "configs/quickstart/tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def processors():
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    tokens = ["<s>", "</s>", "<image>"]
    llava = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
                                                   image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]]),
        tokenizer=vocabulary(tokens, bos_token="<s>", eos_token="</s>"), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=(SHIPPED / "llava_next.jinja").read_text())
    yield "llava_next", tokens, {"image": "<image>"}, llava, {}
    tokens = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    for pan in (False, True):
        gemma = Gemma3Processor(
            image_processor=Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
            tokenizer=vocabulary(tokens, bos_token="<bos>", eos_token="<eos>",
                                 extra_special_tokens={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
                                                       "image_token": "<image_soft_token>"}),
            chat_template=(SHIPPED / "gemma3.jinja").read_text(), image_seq_length=4)
        settings = {"do_pan_and_scan": pan, "pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": 4,
                    "pan_and_scan_min_ratio_to_activate": 1.2}
        yield "gemma3", tokens, {"image": "<image_soft_token>", "start": "<start_of_image>", "end": "<end_of_image>"}, gemma, settings


PICTURES = {"a.png": (40, 60), "wide.png": (30, 130), "tall.png": (100, 33)}  # height, width
PICTURE_CHATS = [
    [{"role": "user", "content": [{"type": "image", "image": "a.png"}, text("What is it?")]}],
    [{"role": "user", "content": [text("\n\nbefore\n"), {"type": "image", "image": "wide.png"}, text("\n\n after"),
                                  {"type": "image", "image": "tall.png"}]},
     {"role": "assistant", "content": [text("Row 1: bag.")]}, {"role": "user", "content": [{"type": "image", "image": "a.png"}, text(" ")]}],
    [{"role": "user", "content": [text("no picture")]}],
]


def picture(name):
    height, width = PICTURES[name]
    return Image.fromarray(numpy.random.default_rng(len(name)).integers(0, 256, (height, width, 3), dtype=numpy.uint8))


def shape_of(processor, image_id, name, settings):
    mark = getattr(processor.tokenizer, "boi_token", None) or processor.image_token
    made = processor(text=[mark], images=[[picture(name)]], images_kwargs=settings)
    ids = made["input_ids"][0]
    starts = ids.count(processor.tokenizer.convert_tokens_to_ids(mark)) if mark != "<image>" else 1
    return {"rows": ids.count(image_id), "runs": starts}


def pictures():
    families = []
    for family, tokens, names, processor, settings in processors():
        tokenizer = processor.tokenizer
        image_id = tokenizer.convert_tokens_to_ids(names["image"])
        cases = []
        for chat in PICTURE_CHATS:
            files = [part["image"] for message in chat for part in message["content"] if part["type"] == "image"]
            for generation in (False, True):
                rendered_text = processor.apply_chat_template(chat, add_generation_prompt=generation)
                made = processor(text=[rendered_text], images=[[picture(name) for name in files]] if files else None, add_special_tokens=False,
                                 images_kwargs=settings)
                cases.append({"messages": chat, "generation": generation, "text": rendered_text, "ids": list(made["input_ids"][0]),
                              "shapes": [shape_of(processor, image_id, name, settings) for name in files]})
        families.append({"family": family, "tokens": {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}, "names": names,
                         "bos": tokenizer.bos_token, "eos": tokenizer.eos_token, "template": processor.chat_template, "cases": cases})
    return {"versions": versions("transformers", "tokenizers", "pillow"),
            "about": "the quickstart's vocabulary with `tokens` added as special ones; shapes: image tokens and runs of them a picture",
            "families": families}


def main():
    write_json(GOLDENS / "text/templates.json", templates(), None)
    write_json(GOLDENS / "text/chat_pictures.json", pictures(), None)
    print("chat")


if __name__ == "__main__":
    main()
