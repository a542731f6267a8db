"""Giving, sharing, counting and ages."""

from __future__ import annotations

from accuracy.problems.template import Draw, Work, template

THINGS = "marbles|stickers|cards|shells|stamps|coins|beads|buttons"


@template
def share_equally(d: Draw, w: Work) -> str:
    who, friends, each, kept = d.person(), d.n(2, 9), d.n(2, 15), d.n(2, 20)
    total, things = friends * each + kept, d.pick(THINGS)
    given = w(f"{who} gives away @ {things}.", f"{total} - {kept}")
    w(f"Each friend gets @ {things}.", f"{given} / {friends}")
    return (
        f"{who} has {total} {things}. {who.He} keeps {kept} and shares the rest equally among {friends} friends."
        f" How many {things} does each friend get?"
    )


@template
def boxes_and_loose(d: Draw, w: Work) -> str:
    who, boxes, per, loose, gone = d.person(), d.n(2, 12), d.n(3, 15), d.n(2, 20), d.n(2, 20)
    things = d.pick(THINGS)
    packed = w(f"In the boxes there are @ {things}.", f"{boxes} * {per}")
    total = w(f"With the others {who} has @ {things}.", f"{packed} + {loose}")
    w(f"Then @ {things} are left.", f"{total} - {gone}")
    return (
        f"{who} has {boxes} boxes of {per} {things} each, and {loose} more on {who.his} desk. {who.He} loses {gone} of them."
        f" How many {things} are left?"
    )


@template
def times_as_many(d: Draw, w: Work) -> str:
    a, b, have, times = d.person(), d.person(), d.n(3, 60), d.n(2, 9)
    things = d.pick(THINGS)
    other = w(f"{b} has @ {things}.", f"{have} * {times}")
    w(f"Together they have @ {things}.", f"{have} + {other}")
    return f"{a} has {have} {things}. {b} has {times} times as many. How many {things} do they have together?"


@template
def chain_of_three(d: Draw, w: Work) -> str:
    a, b, c, have, more, times = d.person(), d.person(), d.person(), d.n(3, 25), d.n(2, 15), d.n(2, 4)
    things = d.pick(THINGS)
    second = w(f"{b} has @ {things}.", f"{have} + {more}")
    third = w(f"{c} has @ {things}.", f"{second} * {times}")
    w(f"All three have @ {things}.", f"{have} + {second} + {third}")
    return (
        f"{a} has {have} {things}, {b} has {more} more than {a}, and {c} has {times} times as many as {b}."
        f" How many {things} do the three have together?"
    )


@template
def fewer_than(d: Draw, w: Work) -> str:
    a, b, have, fewer, gets = d.person(), d.person(), d.n(12, 60), d.n(2, 20), d.n(2, 20)
    things = d.pick(THINGS)
    other = w(f"{b} has @ {things}.", f"{have} - {fewer}")
    w(f"Then {b} has @ {things}.", f"{other} + {gets}")
    return f"{a} has {have} {things}. {b} has {fewer} fewer, but then finds {gets} more. How many {things} does {b} have now?"


@template
def rows_of_chairs(d: Draw, w: Work) -> str:
    rows, chairs, empty = d.n(3, 15), d.n(4, 15), d.n(2, 20)
    total = w("There are @ chairs.", f"{rows} * {chairs}")
    w("So @ people sit there.", f"{total} - {empty}")
    place = d.pick("hall|cinema|classroom|church|tent")
    return (
        f"A {place} has {rows} rows of {chairs} chairs. {empty} chairs are empty, and on all the others somebody sits."
        " How many people sit there?"
    )


@template
def legs(d: Draw, w: Work) -> str:
    four, two = d.n(2, 20), d.n(2, 30)
    beast, bird = d.pick("cows|sheep|goats|horses|pigs"), d.pick("hens|ducks|geese|turkeys")
    a = w(f"The {beast} have @ legs.", f"{four} * 4")
    b = w(f"The {bird} have @ legs.", f"{two} * 2")
    w("Together they have @ legs.", f"{a} + {b}")
    return f"On a farm there are {four} {beast} and {two} {bird}. How many legs do they have together?"


@template
def age_now_and_then(d: Draw, w: Work) -> str:
    a, b, age, times, years = d.person(), d.person(), d.n(4, 15), d.n(2, 4), d.n(2, 15)
    now = w(f"{b} is @ years old now.", f"{age} * {times}")
    w(f"In {years} years {b} will be @ years old.", f"{now} + {years}")
    return f"{a} is {age} years old. {b} is {times} times as old. How old will {b} be in {years} years?"


@template
def sum_of_ages(d: Draw, w: Work) -> str:
    a, b, age, older, years = d.person(), d.person(), d.n(4, 40), d.n(2, 20), d.n(2, 9)
    other = w(f"{b} is @ years old.", f"{age} + {older}")
    both = w("Together they are @ years old now.", f"{age} + {other}")
    more = w(f"In {years} years they gain @ years together.", f"2 * {years}")
    w("Then they are @ years old together.", f"{both} + {more}")
    return (
        f"{a} is {age} years old and {b} is {older} years older. What will be the sum of their ages in {years} years?"
    )


@template
def age_difference(d: Draw, w: Work) -> str:
    a, b, c, age, older, younger = d.person(), d.person(), d.person(), d.n(8, 40), d.n(2, 20), d.n(1, 7)
    second = w(f"{b} is @ years old.", f"{age} + {older}")
    third = w(f"{c} is @ years old.", f"{age} - {younger}")
    w(f"{b} is @ years older than {c}.", f"{second} - {third}")
    return (
        f"{a} is {age}. {b} is {older} years older than {a}, and {c} is {younger} years younger than {a}."
        f" How many years older than {c} is {b}?"
    )


@template
def cookies_baked(d: Draw, w: Work) -> str:
    who, trays, per, eaten, bags = d.person(), d.n(2, 9), d.n(4, 15), d.n(1, 12), d.n(2, 6)
    sweets = d.pick("cookies|muffins|rolls|tarts|pretzels")
    total = w(f"{who} bakes @ {sweets}.", f"{trays} * {per}")
    left = w(f"Then @ {sweets} are left.", f"{total} - {eaten}")
    w(f"Each bag holds @ {sweets}.", f"{left} / {bags}")
    return (
        f"{who} bakes {trays} trays of {per} {sweets}. {who.his.capitalize()} family eats"
        f" {eaten}, and the rest is put into {bags} equal bags. How many {sweets} are in a bag?"
    )


@template
def classes(d: Draw, w: Work) -> str:
    rooms, pupils, absent, teachers = d.n(2, 9), d.n(12, 30), d.n(1, 15), d.n(2, 9)
    total = w("There are @ pupils.", f"{rooms} * {pupils}")
    here = w("Of these @ have come.", f"{total} - {absent}")
    w("With the teachers that is @ people.", f"{here} + {teachers}")
    trip = d.pick("on a trip|to a concert|to a sports day|on a picnic")
    return (
        f"{rooms} classes of {pupils} pupils go {trip}, but {absent} pupils are ill. {teachers} teachers come along."
        " How many people go?"
    )


@template
def collection_over_days(d: Draw, w: Work) -> str:
    who, first, more, had = d.person(), d.n(3, 25), d.n(1, 9), d.n(5, 60)
    things = d.pick(THINGS)
    second = w(f"On Tuesday {who} gets @ {things}.", f"{first} + {more}")
    third = w(f"On Wednesday {who.he} gets @ {things}.", f"{second} + {more}")
    w(f"Now {who.he} has @ {things}.", f"{had} + {first} + {second} + {third}")
    return (
        f"{who} has {had} {things}. On Monday {who.he} gets {first} more, and on each of the next two days {more} more than the"
        f" day before. How many {things} does {who.he} have on Wednesday evening?"
    )
