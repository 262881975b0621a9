#!/usr/bin/env python3
"""Writes everything the demo model is made of, from nothing but this file and a seed.

    make_corpus.py OUT_DIR

  OUT_DIR/corpus.jsonl      {"text"} rows: the pre-training corpus, a small invented world
  OUT_DIR/valid.jsonl       the same, never trained on
  OUT_DIR/notes-train.jsonl {"prompt", "completion"} rows: the demo's adaptation task
  OUT_DIR/notes-valid.jsonl the same, with people the training rows never name together

The base model learns to tell short stories about that world, to answer questions about them, and
what JSON looks like. It never sees a story turned into a JSON record: that is what the demo
teaches it. Only the standard library is used; the output is the same on every machine.
"""
import json
import random
import sys
from pathlib import Path

GIRLS = "Ada Bea Cleo Dora Ella Fay Gina Hana Iris Jade Kira Lena Mia Nora Olga Pia Rosa Sara Tess Una".split()
BOYS = "Abel Ben Carl Dan Emil Finn Gus Hugo Ivan Jack Karl Leo Max Nils Otto Paul Rex Sam Tom Ugo".split()
COLOURS = "red blue green yellow black white brown pink grey purple".split()
SIZES = "small big tiny little new shiny".split()
THINGS = "boat kite ball drum lamp hat book bike cup coat ring box bell map key cart".split()
PETS = "dog cat duck goat hen fox horse mouse rabbit turtle".split()
PLACES = "lake forest market beach farm school river garden park castle harbour hill".split()
FOODS = "soup bread cake rice apples cheese plums honey beans nuts pears eggs".split()
JOBS = "baker doctor farmer painter sailor teacher singer tailor pilot gardener".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WEATHER = "sunny rainy windy cold warm foggy".split()
SHOPS = "bakery bookshop grocer hardware pharmacy toyshop".split()


def person(r):
    girl = r.random() < 0.5
    return {"name": r.choice(GIRLS if girl else BOYS), "he": "she" if girl else "he",
            "his": "her" if girl else "his", "him": "her" if girl else "him"}


def facts(r):
    p = person(r)
    p.update(age=r.randint(4, 12), colour=r.choice(COLOURS), size=r.choice(SIZES),
             thing=r.choice(THINGS), pet=r.choice(PETS), place=r.choice(PLACES),
             food=r.choice(FOODS), day=r.choice(DAYS), weather=r.choice(WEATHER))
    p["He"], p["His"] = p["he"].capitalize(), p["his"].capitalize()
    return p


OPENINGS = [
    "{name} is {age} years old. {He} has a {size} {colour} {thing}.",
    "{name} has a {size} {colour} {thing}. {He} is {age} years old.",
    "There was a child called {name}, who was {age} and had a {size} {colour} {thing}.",
    "{name}, who is {age}, loves {his} {size} {colour} {thing}.",
]
MIDDLES = [
    "On {day} {he} went to the {place} with {his} {pet}.",
    "{He} took the {thing} to the {place} on {day}. {His} {pet} came too.",
    "One {weather} {day} {he} walked to the {place}, and {his} {pet} ran behind {him}.",
    "{His} {pet} likes the {place}, so on {day} they went there together.",
]
ENDS = [
    "They ate {food} and went home.", "At noon they ate {food}.",
    "{He} shared {food} with the {pet}.", "Then it was time for {food}.",
]
TURNS = [
    "But the {thing} fell into the water. The {pet} pulled it out, and {name} was happy.",
    "A friend asked for the {colour} {thing}. {name} said yes, and they played until dark.",
    "The {pet} hid the {thing} under a tree. {name} looked for it and found it.",
    "It was {weather} at the {place}. {name} did not mind, for the {colour} {thing} was there.",
    "{name} lost the {thing} near the {place}. The next day a kind {job} brought it back.",
]
QUESTIONS = [
    ("What colour is the {thing}?", "The {thing} is {colour}."),
    ("Who has the {thing}?", "{name} has the {thing}."),
    ("How old is {name}?", "{name} is {age} years old."),
    ("Where did {name} go?", "{name} went to the {place}."),
    ("Which pet does {name} have?", "{name} has a {pet}."),
    ("What did they eat?", "They ate {food}."),
    ("When did {name} go to the {place}?", "{name} went there on {day}."),
]


def note(f, r):
    """The part of a story that holds every fact of a record."""
    return " ".join(x.format(**f) for x in (r.choice(OPENINGS), r.choice(MIDDLES), r.choice(ENDS)))


def story(r):
    f = facts(r)
    f["job"] = r.choice(JOBS)
    text = note(f, r)
    for turn in r.sample(TURNS, r.randint(0, 2)):
        text += " " + turn.format(**f)
    return text


def quiz(r):
    f = facts(r)
    text = note(f, r)
    for q, a in r.sample(QUESTIONS, r.randint(3, 6)):
        text += f"\nQuestion: {q.format(**f)}\nAnswer: {a.format(**f)}"
    return text


def roster(r):
    """Copying practice: who has what, asked again in another order or as a table in JSON."""
    people = r.sample(GIRLS + BOYS, r.randint(2, 5))
    owns = {p: (r.choice(COLOURS), r.choice(THINGS)) for p in people}
    text = " ".join(f"{p} has a {c} {t}." for p, (c, t) in owns.items())
    order = list(people)
    r.shuffle(order)
    if r.random() < 0.4:
        return text + " Again: " + " ".join(f"{p}: {owns[p][0]} {owns[p][1]}." for p in order)
    kind = r.randint(0, 2)
    if kind == 0:
        table = {p: " ".join(owns[p]) for p in order}
    elif kind == 1:
        table = [{"owner": p, "colour": owns[p][0], "thing": owns[p][1]} for p in order]
    else:
        table = {owns[p][1]: p for p in order}
    return text + "\nTable: " + json.dumps(table)


def inventory(r):
    """JSON of another kind than the demo's: syntax without the task."""
    row = {"shop": r.choice(SHOPS), "open": r.choice(DAYS),
           "stock": {t: r.randint(1, 30) for t in r.sample(THINGS + FOODS, r.randint(1, 3))}}
    if r.random() < 0.5:
        row["owner"] = person(r)["name"]
    if r.random() < 0.5:
        row["colour"] = r.choice(COLOURS)
    return json.dumps(row)


def record(f):
    return json.dumps({k: f[k] for k in ("name", "pet", "place", "day", "food")})


def corpus_row(r):
    return {"text": r.choices((story, quiz, roster, inventory), (2, 5, 6, 1))[0](r)}


def notes_row(r):
    f = facts(r)
    return {"prompt": note(f, r) + "\nRecord:", "completion": " " + record(f)}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    r = random.Random("graft demo 1")
    write(out / "corpus.jsonl", [corpus_row(r) for _ in range(24000)])
    write(out / "valid.jsonl", [corpus_row(r) for _ in range(300)])
    write(out / "notes-train.jsonl", [notes_row(r) for _ in range(600)])
    write(out / "notes-valid.jsonl", [notes_row(r) for _ in range(40)])


if __name__ == "__main__":
    main()
