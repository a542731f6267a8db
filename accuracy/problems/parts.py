"""Fractions, percentages, averages and ratios, of numbers that they divide."""

from __future__ import annotations

from accuracy.problems.template import Draw, Work, template

WORDS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 8: "an eighth", 10: "a tenth"}


@template
def half_then_more(d: Draw, w: Work) -> str:
    who, half, more = d.person(), d.n(6, 60), d.n(2, 25)
    april = 2 * half
    things = d.pick("clips|cakes|tickets|flowers|baskets|posters")
    may = w(f"In May {who} sells @ {things}.", f"{april} / 2")
    june = w(f"In June {who.he} sells @ {things}.", f"{may} + {more}")
    w(f"Together that is @ {things}.", f"{april} + {may} + {june}")
    return (
        f"{who} sells {april} {things} in April, half as many in May, and in June {more} more than in May."
        f" How many {things} does {who.he} sell in the three months?"
    )


@template
def fraction_gone(d: Draw, w: Work) -> str:
    who, part, of, then = d.person(), d.n(3, 25), d.one_of(2, 3, 4, 5, 6), d.n(2, 15)
    total, things = part * of, d.pick("nuts|grapes|sweets|cherries|olives")
    eaten = w(f"{who} eats @ {things}.", f"{total} / {of}")
    left = w(f"Then @ {things} are left.", f"{total} - {eaten}")
    w(f"After giving some away {who.he} has @ {things}.", f"{left} - {then}")
    return (
        f"{who} has {total} {things}. {who.He} eats {WORDS[of]} of them and gives {then} to a friend."
        f" How many {things} does {who.he} have left?"
    )


@template
def two_fractions(d: Draw, w: Work) -> str:
    unit, a, b = d.n(1, 15), d.one_of(2, 3, 4, 5, 6, 8), d.one_of(2, 3, 4, 5, 6, 10)
    total = unit * a * b
    group, one, two = d.pick("guests|pupils|players|tourists"), d.pick("tea|milk|juice"), d.pick("water|cocoa|coffee")
    first = w(f"There are @ {group} who drink {one}.", f"{total} / {a}")
    rest = w(f"That leaves @ {group}.", f"{total} - {first}")
    second = w(f"Of these @ drink {two}.", f"{rest} / {b}")
    w(f"So @ {group} drink nothing.", f"{rest} - {second}")
    return (
        f"Of {total} {group}, {WORDS[a]} drink {one}. {WORDS[b].capitalize()} of the others drink {two}, and the rest drink nothing."
        f" How many {group} drink nothing?"
    )


@template
def percent_off(d: Draw, w: Work) -> str:
    who, hundreds, percent, extra = d.person(), d.n(1, 9), d.n(5, 90, 5), d.n(3, 40)
    price, thing = 100 * hundreds, d.pick("sofa|table|phone|coat|bed|desk")
    off = w("The price falls by $@.", f"{price} * {percent} / 100")
    now = w(f"The {thing} then costs $@.", f"{price} - {off}")
    w(f"With delivery {who} pays $@.", f"{now} + {extra}")
    return (
        f"A {thing} for ${price} is sold at {percent} percent off. Delivery costs ${extra}."
        f" How many dollars does {who} pay to have it delivered?"
    )


@template
def percent_of_people(d: Draw, w: Work) -> str:
    tens, percent, left = d.n(2, 30), d.n(10, 90, 10), d.n(1, 9)
    total, group = 10 * tens, d.pick("workers|fans|visitors|voters|members")
    women = w(f"There are @ women among the {group}.", f"{total} * {percent} / 100")
    men = w("So there are @ men.", f"{total} - {women}")
    w("After some leave there are @ men.", f"{men} - {left}")
    return f"Of {total} {group}, {percent} percent are women and the rest are men. Then {left} men leave. How many men are there now?"


@template
def raise_in_percent(d: Draw, w: Work) -> str:
    who, tens, percent, weeks = d.person(), d.n(10, 60), d.n(10, 50, 10), d.n(2, 6)
    pay = 10 * tens
    more = w("The raise is $@.", f"{pay} * {percent} / 100")
    now = w(f"Now {who} earns $@ a week.", f"{pay} + {more}")
    w(f"In {weeks} weeks that is $@.", f"{now} * {weeks}")
    return (
        f"{who} earns ${pay} a week and gets a raise of {percent} percent."
        f" How many dollars does {who.he} earn in {weeks} weeks after it?"
    )


@template
def average_of_three(d: Draw, w: Work) -> str:
    who, a, b, mean = d.person(), d.n(10, 60), d.n(10, 60), d.n(15, 70)
    c = 3 * mean - a - b
    if not 1 <= c <= 100:
        c = a + b + 3 - (2 * (a + b)) % 3
    unit = d.pick("points|pages|miles|fish")
    total = w(f"Altogether that is @ {unit}.", f"{a} + {b} + {c}")
    w(f"The average is @ {unit}.", f"{total} / 3")
    return f"{who} gets {a} {unit} on the first day, {b} on the second and {c} on the third. What is the average a day?"


@template
def average_needed(d: Draw, w: Work) -> str:
    who, a, b, mean = d.person(), d.n(40, 90), d.n(40, 90), d.n(50, 90)
    need = w(f"For three tests {who} needs @ points.", f"3 * {mean}")
    have = w(f"{who.He} has @ points.", f"{a} + {b}")
    w("The third test must bring @ points.", f"{need} - {have}")
    return f"{who} scores {a} and {b} points in two tests. How many points must the third test bring for an average of {mean}?"


@template
def ratio_of_paint(d: Draw, w: Work) -> str:
    a, b, unit = d.n(1, 7), d.n(1, 7), d.n(2, 15)
    total = (a + b) * unit
    one, two = d.pick("red|white|yellow"), d.pick("blue|green|black")
    parts = w("There are @ parts.", f"{a} + {b}")
    each = w("A part is @ litres.", f"{total} / {parts}")
    w(f"So it has @ litres of {one}.", f"{a} * {each}")
    return f"A paint is mixed from {a} parts of {one} and {b} parts of {two}. How many litres of {one} are in {total} litres of it?"


@template
def recipe(d: Draw, w: Work) -> str:
    who, people, per, guests, have = d.person(), d.n(2, 8), d.n(2, 9), d.n(4, 24), d.n(1, 8)
    cups, food = people * per, d.pick("flour|rice|sugar|oats")
    each = w(f"One person needs @ spoons of {food}.", f"{cups} / {people}")
    need = w(f"For {guests} people that is @ spoons.", f"{each} * {guests}")
    w(f"{who} has to buy @ spoons.", f"{need} - {have}")
    return (
        f"A recipe for {people} people takes {cups} spoons of {food}. {who} cooks for {guests} people and has {have} spoons"
        f" already. How many more spoons of {food} does {who.he} need?"
    )


@template
def garden_fence(d: Draw, w: Work) -> str:
    who, length, width, price = d.person(), d.n(4, 40), d.n(3, 30), d.n(2, 9)
    side = w("Two sides together are @ metres.", f"{length} + {width}")
    around = w("All around it is @ metres.", f"2 * {side}")
    w("The fence costs $@.", f"{around} * {price}")
    thing = d.pick("garden|field|yard|park")
    return (
        f"{who} puts a fence around a {thing} that is {length} metres long and {width} metres wide. A metre costs ${price}."
        " How many dollars does the fence cost?"
    )


@template
def area_of_tiles(d: Draw, w: Work) -> str:
    who, length, width, spare = d.person(), d.n(3, 15), d.n(3, 15), d.n(2, 20)
    floor = w("The floor takes @ tiles.", f"{length} * {width}")
    w(f"With the spare ones {who} buys @ tiles.", f"{floor} + {spare}")
    return (
        f"A floor is {length} tiles long and {width} tiles wide. {who} buys the tiles for it and {spare} to spare."
        f" How many tiles does {who.he} buy?"
    )
