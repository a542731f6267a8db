"""Distances, speeds, times and rates of work."""

from __future__ import annotations

from accuracy.problems.template import Draw, Work, template


@template
def two_legs(d: Draw, w: Work) -> str:
    who, a, s, b, t = d.person(), d.n(2, 6), d.n(10, 60, 5), d.n(2, 6), d.n(10, 60, 5)
    first = w(f"First {who} travels @ miles.", f"{a} * {s}")
    second = w(f"Then {who.he} travels @ miles.", f"{b} * {t}")
    w("Altogether that is @ miles.", f"{first} + {second}")
    how = d.pick("drives|travels|rides")
    return f"{who} {how} for {a} hours at {s} miles an hour, then for {b} hours at {t} miles an hour. How many miles does {who.he} go?"


@template
def hours_left(d: Draw, w: Work) -> str:
    speed, hours, gone = d.n(10, 70, 5), d.n(2, 9), d.n(20, 200, 10)
    total = speed * hours + gone
    thing = d.pick("truck|train|bus|ship")
    left = w("There are @ miles left.", f"{total} - {gone}")
    w("They take @ hours.", f"{left} / {speed}")
    return f"A {thing} has to go {total} miles and has done {gone} of them. It goes {speed} miles an hour. How many hours are left?"


@template
def towards_each_other(d: Draw, w: Work) -> str:
    a, b, hours = d.n(3, 40), d.n(3, 40), d.n(2, 9)
    apart, kind = (a + b) * hours, d.pick("cyclists|runners|boats|hikers")
    both = w("Each hour they come @ miles closer.", f"{a} + {b}")
    w("They meet after @ hours.", f"{apart} / {both}")
    return (
        f"Two {kind} are {apart} miles apart and move towards each other, one at {a} and the other at {b} miles an hour."
        " After how many hours do they meet?"
    )


@template
def laps(d: Draw, w: Work) -> str:
    who, sprints, times, metres = d.person(), d.n(2, 8), d.n(2, 6), d.n(20, 90, 10)
    count = w(f"{who} runs @ times a week.", f"{sprints} * {times}")
    w(f"{who.He} runs @ metres.", f"{count} * {metres}")
    return f"{who} runs {sprints} sprints of {metres} metres, {times} times a week. How many metres does {who.he} run in a week?"


@template
def there_and_back(d: Draw, w: Work) -> str:
    who, miles, days, more = d.person(), d.n(2, 25), d.n(2, 7), d.n(3, 40)
    goal = d.pick("school|work|the library|the gym")
    daily = w(f"Each day {who} goes @ miles.", f"2 * {miles}")
    week = w(f"In {days} days that is @ miles.", f"{daily} * {days}")
    w("With the trip it is @ miles.", f"{week} + {more}")
    return (
        f"{who} lives {miles} miles from {goal} and goes there and back on {days} days of the week."
        f" On the weekend {who.he} makes a trip of {more} miles. How many miles is that in a week?"
    )


@template
def fuel(d: Draw, w: Work) -> str:
    per, gallons, price = d.n(10, 40), d.n(2, 12), d.n(2, 6)
    miles, thing = per * gallons, d.pick("car|van|motorbike|truck")
    need = w("It needs @ gallons.", f"{miles} / {per}")
    w("They cost $@.", f"{need} * {price}")
    return (
        f"A {thing} goes {per} miles on a gallon of fuel, which costs ${price}."
        f" How many dollars does the fuel for {miles} miles cost?"
    )


@template
def reading(d: Draw, w: Work) -> str:
    who, pages, days, rest = d.person(), d.n(5, 30), d.n(2, 9), d.n(2, 9)
    daily = d.n(4, 30)
    total = pages * days + daily * rest
    done = w(f"{who} has read @ pages.", f"{pages} * {days}")
    left = w("There are @ pages left.", f"{total} - {done}")
    w(f"{who.He} must read @ pages a day.", f"{left} / {rest}")
    return (
        f"{who} reads {pages} pages a day for {days} days of a book of {total} pages."
        f" How many pages a day must {who.he} read to finish it in {rest} more days?"
    )


@template
def two_machines(d: Draw, w: Work) -> str:
    a, b, hours = d.n(3, 40), d.n(3, 40), d.n(2, 12)
    what = d.pick("bottles|toys|boxes|loaves|shirts")
    each = w(f"Together they make @ {what} an hour.", f"{a} + {b}")
    w(f"They make @ {what}.", f"{each} * {hours}")
    return f"One machine makes {a} {what} an hour and another makes {b}. How many {what} do they make together in {hours} hours?"


@template
def tank(d: Draw, w: Work) -> str:
    fill, leak, hours, had = d.n(10, 40), d.n(1, 9), d.n(2, 12), d.n(5, 80)
    net = w("Each hour it gains @ litres.", f"{fill} - {leak}")
    gained = w(f"In {hours} hours it gains @ litres.", f"{net} * {hours}")
    w("It then holds @ litres.", f"{had} + {gained}")
    thing = d.pick("tank|pool|barrel|pond")
    return (
        f"A {thing} holds {had} litres. A pipe adds {fill} litres an hour, and {leak} litres an hour leak out."
        f" How many litres does it hold after {hours} hours?"
    )


@template
def practice_minutes(d: Draw, w: Work) -> str:
    who, minutes, days, extra = d.person(), d.n(10, 50, 5), d.n(2, 6), d.n(10, 90, 5)
    thing = d.pick("the piano|the violin|chess|tennis|singing")
    week = w(f"On {days} days that is @ minutes.", f"{minutes} * {days}")
    w("With the weekend it is @ minutes.", f"{week} + {extra}")
    return (
        f"{who} practises {thing} for {minutes} minutes on each of {days} days and for {extra} minutes on the weekend."
        " How many minutes is that in all?"
    )


@template
def hours_to_minutes(d: Draw, w: Work) -> str:
    who, hours, parts, rest = d.person(), d.n(1, 5), d.n(2, 6), d.n(2, 20)
    total = w(f"{who} has @ minutes.", f"{hours} * 60")
    breaks = w("The breaks take @ minutes.", f"{parts} * {rest}")
    w("So @ minutes are left.", f"{total} - {breaks}")
    return (
        f"{who} has {hours} hours for {who.his} homework and takes {parts} breaks of {rest} minutes."
        " How many minutes are left for work?"
    )


@template
def wages(d: Draw, w: Work) -> str:
    who, pay, hours, days, spent = d.person(), d.n(8, 25), d.n(2, 8), d.n(2, 6), d.n(10, 60)
    daily = w(f"{who} earns $@ a day.", f"{pay} * {hours}")
    week = w(f"In {days} days that is $@.", f"{daily} * {days}")
    w(f"{who.He} keeps $@.", f"{week} - {spent}")
    return (
        f"{who} earns ${pay} an hour and works {hours} hours on each of {days} days. {who.He} spends ${spent} on food."
        f" How many dollars does {who.he} keep?"
    )


@template
def overtime(d: Draw, w: Work) -> str:
    who, pay, hours, extra = d.person(), d.n(8, 25), d.n(5, 9), d.n(1, 5)
    normal = w(f"For the {hours} hours {who} gets $@.", f"{pay} * {hours}")
    double = w("An hour of overtime pays $@.", f"2 * {pay}")
    more = w("The overtime pays $@.", f"{double} * {extra}")
    w("Together that is $@.", f"{normal} + {more}")
    return (
        f"{who} is paid ${pay} an hour, and twice as much for overtime. Today {who.he} works {hours} hours and {extra} hours of"
        f" overtime. How many dollars does {who.he} earn today?"
    )
