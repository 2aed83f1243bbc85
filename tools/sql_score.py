"""How many of the held-out questions an SQL model answers rightly, in our engine and its precision.

    python tools/sql_score.py RUN_OR_DEMO_MODEL            # under the grammar, as the demo's task will ask
    python tools/sql_score.py RUN_OR_DEMO_MODEL --free     # without

Prints each wrong answer, and what of sql_pairs.toml is not answered word by word.
"""

from __future__ import annotations

import argparse

import coldstream
from coldstream.serve.sql.grammar import select_grammar
from sql_execution import held_out, is_right
from sql_tokenizer import PROMPT, taught

LONGEST_ANSWER = 200


def main() -> None:
    """Ask everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--free", action="store_true")
    args = parser.parse_args()
    right = {"English": 0, "Korean": 0}
    with coldstream.LLM(args.model) as llm:
        for case in held_out():
            answer = ask(llm, case.schema, case.question, free=args.free)
            if is_right(case, answer):
                right["English" if case.question.isascii() else "Korean"] += 1
            else:
                print(f"wrong: {case.question}\n       {answer}")
        known = taught()
        changed = [
            question for schema, question, answer in known if ask(llm, schema, question, free=args.free) != answer
        ]
    print(f"right {right} of {len(held_out())}; of {len(known)} to be known word by word not so: {changed}")


def ask(llm: coldstream.LLM, schema: str, question: str, *, free: bool) -> str:
    """The model's answer, greedily."""
    grammar = None if free else select_grammar(schema, question)
    prompt = [{"role": "user", "content": PROMPT.format(context=schema, question=question)}]
    if grammar is None:
        return llm.chat(prompt, temperature=0.0, max_tokens=LONGEST_ANSWER).text
    return llm.chat(prompt, temperature=0.0, max_tokens=LONGEST_ANSWER, grammar=grammar).text


if __name__ == "__main__":
    main()
