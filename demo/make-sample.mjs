// Writes sample.openai-chat.jsonl: a model answer of our own in OpenAI's chat chunk format, one
// JSON chunk a line, cut into pieces about as a model cuts them. Run: node demo/make-sample.mjs
import { writeFileSync } from 'node:fs';

const ANSWER = `A lighthouse has one job: to be seen from far away, and to be recognised. Everything about it, the height, the colour, the shape of the lamp room, follows from those two.

Start with the height. The Earth is round, so a light at sea level disappears behind the horizon after a few kilometres. Raise it to forty metres and a sailor on the deck of a small ship can see it from about thirty kilometres. That is why lighthouses stand on cliffs where there are cliffs, and grow into tall towers where the coast is flat. Engineers call this the geographic range: the distance at which the curve of the sea would hide the lamp, however bright it is.

Then comes brightness. For most of history the light was simply a fire. The Pharos of Alexandria burned wood on top of a tower of more than a hundred metres, and medieval keepers carried coal up their stairs, basket by basket, night after night. Later there were whale oil and rapeseed oil, then paraffin, then gas, and at last electric arcs and bulbs. But a flame shines in all directions, and most of those directions are of no use. Light that goes up to the stars or down onto the rocks is light that no ship will ever see.

The answer arrived in 1822, when Augustin-Jean Fresnel, a French road engineer who studied light in his spare time, worked out a new kind of lens. An ordinary lens large enough for a lighthouse would have been a metre thick, far too heavy and too dim, because so much glass swallows so much light. Fresnel noticed that a lens bends light only at its surfaces. The glass in between does nothing. So he cut it away and kept the surfaces, as a set of rings, each with its own angle. Above and below he added prisms that catch the stray rays and turn them towards the horizon as well. His first lens, at Cordouan in the mouth of the Gironde, sent four fifths of the lamp's light out to sea. The mirrors before it had managed perhaps a fifth.

A flat beam all around the horizon is good. A beam that is gathered into a few narrow bundles is better still, because each of them is far brighter. To sweep those bundles over the sea, the whole lens has to turn. Some of these lenses weigh five tonnes, and yet they could be pushed around with one finger: they floated in a bath of mercury, driven by a clockwork with a falling weight that the keeper wound up every few hours.

Turning also solved the second half of the job, being recognised. A sailor who sees a light needs to know which light it is. So every lighthouse has its own rhythm, called its character: two flashes every ten seconds here, a long one and a short one every fifteen there. The rhythm is printed on the chart next to the tower. You take a stopwatch, count, and know where you are. By day the tower itself carries the message, with bands, spirals or chequers in black, white and red, which is called the daymark.

Colour says one more thing. Many lights have sectors: white where the water is safe, red on one side and green on the other. Steer so that you keep seeing white, and you stay in the channel. If it turns red, turn back. It needs no radio, no language and no screen, and it works for anybody who happens to look.

Today nearly all of them are automatic. A lamp the size of a hand, made of light-emitting diodes and fed by a solar panel, does what a tonne of oil did before. A spare stands ready and swings into place when the first one fails, and a small computer reports to a control room far away. Ships have satellite navigation, of course. But satellites can be jammed, and screens can go dark, and then it is a comfort that there is something out there that keeps its rhythm whether or not anybody is watching.

That may be the most beautiful thing about a lighthouse. It does not know who is looking. Ships come and go, they lose sight of it in the rain and find it again an hour later, and the light has simply gone on, flash after flash, each one in its place. Nobody has to ask it what they missed.`;

/** Words with the blank before them; long ones in two pieces, as tokenizers do. */
function pieces(text) {
  return text
    .match(/\s*[^\s\p{P}]+|\s*\p{P}|\s+/gu)
    .flatMap((word) => (word.trim().length > 9 ? [word.slice(0, 6), word.slice(6)] : [word]));
}

function chunk(delta, finish_reason = null) {
  return {
    id: 'chatcmpl-everwire-lighthouse',
    object: 'chat.completion.chunk',
    created: 1767225600,
    model: 'sample',
    choices: [{ index: 0, delta, finish_reason }],
  };
}

const chunks = [
  chunk({ role: 'assistant', content: '' }),
  ...pieces(ANSWER).map((content) => chunk({ content })),
  chunk({}, 'stop'),
];
const lines = chunks.map((each) => `${JSON.stringify(each)}\n`).join('');
writeFileSync(new URL('sample.openai-chat.jsonl', import.meta.url), lines);
