-- Parks a run that waits for decisions, or notes that its next attempt is on its way: `park` of
-- lifecycle/park.rs. Questions become visible to deciders here.
-- KEYS[1] the park record
-- KEYS[2] the index of open questions
-- KEYS[3] the outbox
-- ARGV    number, holder, lease in ms, the task's message, its queue, its id, abandoned questions,
--         after how many ms its sleep ends (0: it does not sleep), digest of the task, and for each
--         question: id, digest, document, time to decide in ms, quorum, requester, self-approval,
--         approvers, editable, nonce, digest by the version before
-- Returns 'behind', 'waiting' or 'ready', and what became of the questions.
local FIELDS = 11
local holder, lease = ARGV[2], tonumber(ARGV[3])
local now = now_in_ms()

local park = redis.call('HMGET', KEYS[1], 'number', 'holder', 'until', 'ended', 'asked', 'v',
  'digest')
if park[1] then
  -- Whoever is newer has sent messages of his own.
  if park[6] ~= '1' then
    return { 'behind' }
  end
  local is_held = (park[2] or '') ~= '' and park[2] ~= holder and tonumber(park[3] or '0') > now
  local is_another = park[7] and park[7] ~= ARGV[9]
  if park[4] == '1' or is_another or tonumber(park[1]) > tonumber(ARGV[1]) or is_held then
    return { 'behind' }
  end
end

local asked, is_asked, waits = park[5] or '', {}, {}
for id in string.gmatch(asked, '%S+') do
  is_asked[id] = true
end
local function ask(n)
  local id, key = ARGV[n], ASK .. ARGV[n]
  waits[#waits + 1] = id
  local state = standing(id, now)
  local digest = redis.call('HGET', key, 'digest')
  local is_same = digest == ARGV[n + 1] or digest == ARGV[n + 10]
  local is_over = state == 'withdraw' and redis.call('HGET', key, 'open') ~= '1'
  if is_asked[id] and is_same and state ~= 'unknown' and not is_over then
    return
  end
  local deadline = whole(now + tonumber(ARGV[n + 3]))
  redis.call('HSET', key, 'v', '1', 'digest', ARGV[n + 1], 'document', ARGV[n + 2],
    'deadline', deadline, 'quorum', ARGV[n + 4], 'requester', ARGV[n + 5], 'self', ARGV[n + 6],
    'approvers', ARGV[n + 7], 'editable', ARGV[n + 8], 'nonce', ARGV[n + 9], 'open', '1', 'task', ARGV[6],
    'at', whole(now))
  redis.call('PERSIST', key)
  redis.call('ZADD', KEYS[2], deadline, id)
  redis.call('PUBLISH', ASKED, id)
end
for n = 10, #ARGV, FIELDS do
  ask(n)
  if not is_asked[ARGV[n]] then
    asked = asked .. ' ' .. ARGV[n]
    is_asked[ARGV[n]] = true
  end
end
for id in string.gmatch(ARGV[7], '%S+') do
  if standing(id, now) == 'open' then
    redis.call('HSET', ASK .. id, 'open', '0')
    redis.call('ZREM', KEYS[2], id)
  end
end

local list = table.concat(waits, ' ')
local sleeps = tonumber(ARGV[8])
local alarm = sleeps > 0 and whole(now + sleeps) or '0'
local is_ready = #waits > 0 and due_in(list, alarm, now) == 0
redis.call('HSET', KEYS[1], 'v', '1', 'number', ARGV[1], 'waits', list, 'asked', asked,
  'alarm', alarm, 'digest', ARGV[9],
  'message', ARGV[4], 'queue', ARGV[5],
  'holder', is_ready and holder or '', 'until', is_ready and whole(now + lease) or '0')
if is_ready then
  -- Nobody else will send a resume message: if this run dies, a sweeper does.
  redis.call('ZADD', KEYS[3], whole(now + lease), cjson.encode({ ARGV[6], ARGV[1], ARGV[5] }))
  return add_rulings({ 'ready' }, list, now)
end
return { 'waiting', whole(due_in(list, alarm, now)) }
