"""What prompted players of Werewolf are told behind the game's own prompt, all in one place.

The players: `agentgym.envs.werewolf_agents` (ReAct, ReCon), `werewolf_sla` (SLA), `werewolf_predict` (predictions of
roles), and `agentgym.trainers.lspo_play` and `lspo_acts` (an intent from a strategy). The words are ours, made after
what the papers describe.
"""

REACT = (
    "First reason, then act. Reasoning: say what you know, what you suspect and why, and what each of your choices "
    "would lead to. Then give the one answer that follows from it, in the form that was asked for."
)

RECON_OTHERS = (
    "Do not answer yet. Think from your own perspective: which role may each other player have, judging by what it "
    "said, how it voted and who died? Who may be lying, and why? Write a short private thought."
)
RECON_DRAFT = "Now think about your own goal and write a draft of your answer, in the form that was asked for."
RECON_SELF = (
    "Do not answer yet. Put yourself into the other players: how would each of them take your draft, what would it "
    "tell them about your role, and is that what you want? Write a short private thought."
)
RECON_FINAL = "Now write your final answer, better than your draft by what you thought, in the form that was asked for."

SLA_DEDUCE = """Do not answer yet. Deduce the roles of the other players. This is all that you know, numbered:
Facts:
{facts}
Potential truths, said by players you rely on:
{truths}
Potential deceptions, said by players you do not rely on:
{deceptions}
Write a JSON object with a key for each other player: \
{{"player_0": {{"role": one of {roles} or "Uncertain", "confidence": 5 (a guess) to 10 (certain), \
"reasoning": "...", "evidence": [numbers]}}, ...}}"""
SLA_DEDUCED = "What you have deduced so far:\n{deduced}"
SLA_ACTIONS = (
    "Propose {n} different actions, all of them sensible. Write a JSON object: "
    '{{"candidates": [{{"reasoning": "...", "action": "..."}}, ...]}}'
)
SLA_ANOTHER = "Now answer again, in the same form, with something strategically different from your answers so far."

PREDICT = (
    "Before you answer: which role has each other player, as far as you can tell? Write a JSON object with a key for "
    'each other player: {{"player_0": one of {roles}, ...}}'
)

EXAMPLES = "Say something that does the same as these examples, in your own words:\n{}"
INTENT = "What you say must do this and nothing else: {}."
