"""Whom a speech is about, in the grammar of Werewolf and in free English."""

import pytest
from agentgym.envs.werewolf_speech import SENTENCES, Act, say

from agentgym.arguments import ACCUSES, CLEARS, NOBODY, argument, stance
from agentgym.latents import relative

STANCES = {
    **dict.fromkeys(("pass", "claim_seer", "claim_doctor", "claim_villager"), NOBODY),
    **dict.fromkeys(("report_wolf", "accuse", "liar", "call"), ACCUSES),
    **dict.fromkeys(("report_good", "trust"), CLEARS),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_the_grammar(kind):
    for acts in ([Act(kind, 3)], [Act("claim_seer"), Act(kind, 3)]):
        text = say(*acts)
        assert argument(text, 0, 7) == (STANCES[kind], 3 if STANCES[kind] else 7)
        assert stance(relative(text, 0, 7)) == STANCES[kind]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (NOBODY, 7)),
        ("I have no idea, player_3 said nothing.", (NOBODY, 7)),
        ("I don't think player_3 is a Werewolf.", (CLEARS, 3)),
        ("I don’t trust Player 5!", (ACCUSES, 5)),
        ("As the Seer I checked player3: Werewolf!", (ACCUSES, 3)),
        ("I believe player_2 is the real Seer.", (CLEARS, 2)),
        ("I trust player_1 and suspect player_2.", (ACCUSES, 2)),
        ("I am not a werewolf, player_3 is the liar here.", (ACCUSES, 3)),
        ("player_1 is innocent. So is player_2. Let us vote for player_4.", (ACCUSES, 4)),
        ("I, player_0, am no Werewolf.", (NOBODY, 7)),
        ("player_9 is a Werewolf.", (NOBODY, 7)),
        ("player_4 is not suspicious, but player_6 is lying.", (ACCUSES, 6)),
    ],
)
def test_free_speech(text, expected):
    assert argument(text, 0, 7) == expected


def test_only_others_count():
    assert argument("player_3 is a Werewolf.", 3, 7) == (NOBODY, 7)
    assert stance("me is a Werewolf.") == NOBODY
    assert stance("someone is a Werewolf.") == ACCUSES
