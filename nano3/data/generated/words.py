"""Words that made-up texts are made of."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return " ".join(text.split()).split(", ")


ADJECTIVES = _words("""
amber ancient autumn bitter blue bold brass brave bright broken calm candid cedar clever coastal copper coral
crimson crooked curious damp dapper dusty eager early eastern elder empty faded faint fallen famous fierce foggy
fragrant frozen gentle gilded golden grand granite green hasty hidden hollow humble icy idle indigo iron ivory
jagged jolly keen late lazy leaden little lively lonely lucky lunar marble mellow merry misty modest mossy muddy
narrow neat nimble noble northern olive opal open pale patient pearl plain polished proud quiet rapid restless
rustic sandy scarlet secret shady sharp silent silver sleepy slender smoky snowy solemn southern spotted steady
stormy sturdy sunny swift tall tender thirsty tidy timid tiny tranquil upper velvet violet wandering warm weary
western wild windy winter wise wooden worn young
""")

NOUNS = _words("""
anchor anvil apron arch badger balcony barley barrel basin basket beacon bell bench bridge broom bucket cabin
canal candle canvas canyon carpet cellar chapel chimney cliff clock comet compass cottage cradle crane creek
crown cypress dagger dairy desert dome drum eagle easel ember falcon farm feather fence ferry fiddle flask forge
fountain fox gallery garden gate glacier goblet grove hammer harbor harp harvest hawk hedge heron hill hinge
island jacket jar kettle kiln kite ladder lagoon lantern lark ledge library lighthouse lily loom magnet maple
market meadow mill mirror monastery moth mountain needle nest oak oasis orchard otter oven owl paddle palace
parrot pebble pepper pier pigeon pillow pine pitcher plaza plough pond quarry quill quilt raft ranch raven reef
ribbon river rooster saddle sail salmon satchel scarf shell shutter sickle sparrow spindle spring squirrel
stable statue stove summit swan tavern teapot temple thicket thimble tower trail trumpet tunnel turtle valley
vault vessel village vineyard wagon walnut waterfall weaver well wharf wheel whistle willow window wren
""")

ATTRIBUTES = _phrases("""
access code, badge number, batch number, call sign, case number, catalogue number, cipher, delivery code,
deposit number, docket, file number, gate code, inventory number, key code, licence number, locker number,
membership number, order number, parcel number, passphrase, permit number, reference, registration, reservation
code, seal number, serial number, shelf mark, signal code, storage code, tag, ticket number, vault code,
watchword
""")

PLACES = _phrases("""
the harbor office, the north archive, the town hall, the post room, the old depot, the survey team, the reading
room, the night desk, the lower warehouse, the ferry company, the weather station, the museum store, the garden
society, the railway yard, the customs house, the record office, the repair shop, the school kitchen, the tram
garage, the theatre
""")

VERBS = _words("""
watched crossed reached painted passed carried found left followed counted repaired measured visited forgot
opened guarded praised borrowed described admired avoided replaced moved
""")

TIMES = _phrases("""
in the morning, before noon, after the rain, at dusk, late in the year, on market day, during the storm, in
spring, without a word, for the third time, as usual, with great care, on the way home, by lamplight, once more,
that winter
""")
