"""What the report says in words."""

from __future__ import annotations

TITLE = "From recorded play to an agent that does what is preferred"

LEAD = """An agent learned to act in {environment} from pixels: first by imitating recorded play of mixed
quality, then by imitating the good part of it, then by being told which of two of its own episodes is better.
This page shows what each step changed."""

ISLAND = """The agent wakes in a yard in the south of an island, facing roughly north. Three identical yellow
jumppads stand in the north; only what is beside them tells them apart: a blue tower on the left, white columns
in the middle, a red tower on the right. It sees small pictures and moves two sticks and twelve buttons, about
nine times a second. An episode ends on a pad, in the water, or when the time is up. Reaching a pad is the
skill; <em>which</em> pad is the preference, and nothing but comparisons tells the agent which."""

STEPS = (
    ("Pre-train", "imitate all recorded play, the bad with the good."),
    ("Fine-tune", "go on with episodes that go straight to a pad."),
    ("Compare", "let the agent play, and say for pairs of its episodes which is better."),
    ("Reward model", "learn a score that agrees with these comparisons, starting from the agent itself."),
    ("Preference-tune", "imitate the agent's own best-scored episodes."),
    ("Align", "play on and reinforce what scores above average, staying close to the agent it was."),
)

OVERVIEW = """Each map shows where the agent of that step went (brighter: more time, on a logarithmic scale),
the bar under it how its episodes ended, in percent. Drawn from this run."""

RATES = """Percent of episodes with the Wilson 95 % interval; <em>none</em> is every episode that reached no
pad. The small number under ours is the paper's, where it has one ({paper}): another game, 103M parameters and a
year of human play against our small network and scripted players, so it says what the recipe should do, not
what we should match."""

RETURNS = """<em>Return</em> is the world's own reward, added up over an episode without discount: its mean over the
episodes, with the 95 % t interval of the mean."""

OTHER_WORLDS = """<em>away</em> starts in the yard, facing away from the pads; <em>elsewhere</em> at other places of
the island; <em>dusk</em> and <em>night</em> have another sky and less light. Other words are arguments that the world
was made with, such as <em>max-steps-60</em>. No alignment played there."""

MADE_WITH = """These agents played, as in alignment, a world that was made with {arguments}: compare them with others
of the same world only."""

BLANKED = """What is left here is habit; the difference to the table above is what was seen."""

ROUTES = """Time spent in each place, mean over episodes, on one logarithmic scale for all maps. Seen from
above, north is up."""

REWARD = """A reward model gives an episode one number. Its accuracy is the share of held-out pairs, ties left
out, in which the preferred episode got the higher number; equal numbers count as wrong. Its training pairs and
its test pairs share no episode. One start is the agent's own network, the other the same network with weights
drawn anew. Labels allow the accuracy of the rule behind them, which is less than all where the annotator errs; the
calibration error is how far the model's confidence in its verdicts is from their accuracy, on average."""

ALIGNMENT = """In training the agent is told the learned reward only (left). Whether that reward means what it
should is seen in the middle: where its training episodes really ended. The right-hand curve is how far it went
from the agent that it is held to, in nats a step."""

OVER_OPTIMISATION = """The learned reward is a proxy, and a proxy that is pushed far enough stops meaning what it
stood for. Each picture shows the reward that one run was told, how its episodes really ended, and how far it had
gone from its reference, over the steps that it played."""

RECOVERY = """An agent has gone past a pad when it is farther from the yard than the pad's far edge, in the pad's
direction, and has not been launched. The paper's pre-trained agent turned round then, which no direct run that it was
fine-tuned on had shown; without pre-training it got stuck. <em>any</em> counts all three pads."""

IMITATION = "Imitation: negative log-likelihood of the recorded actions, in nats a step."
COMPARISONS = "Reward models: loss on the comparisons."

FAILURES = """{lost} of {episodes} episodes of the base agent reached nothing. It imitates all that it was
shown, idling and shadow-boxing too."""

NUMBERS = """Evaluation episodes have seeds of their own that no training, labelling or validation used; each is
listed in <a href="results.json">results.json</a> under <code>episode_seeds</code>. Actions are sampled at the
temperature shown. Frames and learning time are those of all stages that led to the agent together. Episodes
whose world died were played again."""

FREEDOOM = "The pictures of the island show textures of the Freedoom project, drawn by ViZDoom. "
FOOTER = "The procedure follows {paper}. Made by lit_align."
