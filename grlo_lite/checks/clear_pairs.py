"""Forty questions, each with a good answer and a clearly worse one; any reward model for chat tells them apart."""

WRONG = (
    ("What is the capital of Japan?", "The capital of Japan is Tokyo.", "The capital of Japan is Sydney."),
    ("How many days are in a leap year?", "A leap year has 366 days.", "A leap year has 312 days."),
    ("What is 17 + 25?", "17 + 25 = 42.", "17 + 25 = 61."),
    ("What do bees make?", "Bees make honey, and wax for their combs.", "Bees make milk and cheese."),
    ("At what temperature does water boil at sea level?", "At 100 °C, or 212 °F.", "At 5 °C, so it boils in a fridge."),
    ("Which planet is nearest to the sun?", "Mercury is the nearest planet to the sun.", "Neptune is the nearest."),
    ("What is the opposite of 'hot'?", "The opposite of 'hot' is 'cold'.", "The opposite of 'hot' is 'purple'."),
    ("How many sides does a triangle have?", "A triangle has three sides.", "A triangle has eleven sides."),
    ("What is 9 times 8?", "9 times 8 is 72.", "9 times 8 is 27, since you turn the digits round."),
    ("Who wrote 'Romeo and Juliet'?", "William Shakespeare wrote it.", "It was written by Isaac Newton."),
    ("Is a whale a fish?", "No, a whale is a mammal: it breathes air.", "Yes, whales are a kind of small insect."),
    ("What colour do blue and yellow paint make?", "Mixed, they make green.", "Mixed, they make bright white."),
    ("Sort 3, 1, 2 from small to large.", "1, 2, 3", "3, 1, 2"),
    ("Which month follows June?", "July follows June.", "February follows June."),
    ("Translate 'good morning' into French.", "'Good morning' is 'bonjour' in French.", "It is 'schadenfreude'."),
)


UNHELPFUL = (
    (
        "How do I boil an egg?",
        "Put it into boiling water for 8 to 10 minutes, then cool it in cold water.",
        "Eggs exist.",
    ),
    (
        "Give me three tips for better sleep.",
        "Keep regular hours, dim the lights early, and avoid caffeine late.",
        "No.",
    ),
    ("How can I learn to type faster?", "Practise daily without looking, and aim for accuracy first.", "Who cares."),
    (
        "Explain what a variable is in programming.",
        "A variable is a name for a value that a program can change.",
        "lol",
    ),
    (
        "How do I remove a red wine stain?",
        "Blot it, pour cold water on it, then use salt or soap.",
        "Ask someone else.",
    ),
    ("Write a one-line birthday wish.", "Happy birthday! May the year bring you joy and good health.", "words words"),
    ("What should I pack for a day hike?", "Water, food, a map, a rain jacket and a small first-aid kit.", "Things."),
    (
        "How do I apologise to a friend?",
        "Say what you did, that you are sorry, and how you will mend it.",
        "Don't bother.",
    ),
    (
        "Summarise why exercise is healthy.",
        "It strengthens heart and muscles, and lifts the mood.",
        "It is because it is.",
    ),
    ("How do plants get energy?", "By photosynthesis: they turn light, water and CO2 into sugar.", "From the shop."),
    ("What is a good way to save money?", "Set a budget and move a fixed sum to savings on payday.", "Just be rich."),
    (
        "How do I reverse a list in Python?",
        "Use `items[::-1]` for a copy, or `items.reverse()` in place.",
        "You can't.",
    ),
    ("What does a dentist do?", "A dentist examines and treats teeth and gums.", "I am not going to answer that."),
)


SPOILT = (
    (
        "Why is the sky blue?",
        "Air scatters blue light more than red light.",
        "sky sky sky sky sky sky sky sky sky sky sky",
    ),
    (
        "What is a glacier?",
        "A glacier is a large, slowly moving mass of ice.",
        "A glacier is a glacier is a glacier is a",
    ),
    ("What is rain?", "Rain is water that falls from clouds in drops.", "My favourite pizza has olives and ham on it."),
    (
        "Who was the first person on the moon?",
        "Neil Armstrong, in July 1969.",
        "Bananas are yellow and rich in potassium.",
    ),
    ("Name two primary colours.", "Red and blue are two primary colours.", "asdf qwer zxcv uiop hjkl asdf qwer"),
    (
        "How does a bicycle stay upright?",
        "Moving, it is steered into each lean, which rights it.",
        "It does it by the the",
    ),
    ("What is gravity?", "Gravity is the attraction between masses.", "Shut up, that is a stupid question, you idiot."),
    (
        "What is a noun?",
        "A noun is a word for a person, place, thing or idea.",
        "<div><div><div></div></div></div> 0x00 0x00",
    ),
    (
        "How do I tie a knot?",
        "Cross the ends, pass one under the other, and pull tight.",
        "Cross the ends, then, um, so, like, um,",
    ),
    (
        "What is bread made of?",
        "Mostly flour, water, salt and yeast.",
        "Gravel, mostly, with glass and a little petrol.",
    ),
    (
        "Where do penguins live?",
        "Nearly all wild penguins live in the southern hemisphere.",
        "!!!!!!!!!!!!!!!!!!!!!!!!",
    ),
    (
        "What is an island?",
        "An island is land with water all around it.",
        "An island is a kind of loud blue vegetable.",
    ),
)


PAIRS = WRONG + UNHELPFUL + SPOILT
