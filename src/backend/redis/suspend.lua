-- Suspends a run that waits for decisions, or records that its next attempt is scheduled: `suspend` of
-- lifecycle/suspension.rs. Approval requests become visible to deciders here.
-- KEYS[1] the suspension record
-- KEYS[2] the index of open requests
-- KEYS[3] the outbox
-- ARGV    number, holder, lease in ms, the task's message, its queue, its id, abandoned requests,
--         ms until its sleep ends (0: it does not sleep), digest of the task, and for each request:
--         id, digest, document, time to decide in ms, quorum, requester, self-approval,
--         approvers, editable, nonce, digest by the previous version
-- Returns 'behind', 'waiting' or 'ready', and the outcomes of the requests.
local FIELDS = 11
local holder, lease = ARGV[2], tonumber(ARGV[3])
local now = now_in_ms()

local suspension = redis.call('HMGET', KEYS[1], 'number', 'holder', 'until', 'ended', 'asked', 'v',
  'digest')
if suspension[1] then
  -- A newer run has sent its own messages.
  if suspension[6] ~= '1' then
    return { 'behind' }
  end
  local is_held = (suspension[2] or '') ~= '' and suspension[2] ~= holder and tonumber(suspension[3] or '0') > now
  local is_another = suspension[7] and suspension[7] ~= ARGV[9]
  if suspension[4] == '1' or is_another or tonumber(suspension[1]) > tonumber(ARGV[1]) or is_held then
    return { 'behind' }
  end
end

local requested, is_listed, waits = suspension[5] or '', {}, {}
for id in string.gmatch(requested, '%S+') do
  is_listed[id] = true
end
local function add_request(n)
  local id, key = ARGV[n], REQUEST .. ARGV[n]
  waits[#waits + 1] = id
  if is_listed[id] then
    local state = status(id, now)
    local digest = redis.call('HGET', key, 'digest')
    local is_same = digest == ARGV[n + 1] or digest == ARGV[n + 10]
    local is_over = state == 'withdraw' and redis.call('HGET', key, 'open') ~= '1'
    if is_same and state ~= 'unknown' and not is_over then
      return
    end
  end
  local deadline = whole(now + tonumber(ARGV[n + 3]))
  redis.call('HSET', key, 'v', '1', 'digest', ARGV[n + 1], 'document', ARGV[n + 2],
    'deadline', deadline, 'quorum', ARGV[n + 4], 'requester', ARGV[n + 5], 'self', ARGV[n + 6],
    'approvers', ARGV[n + 7], 'editable', ARGV[n + 8], 'nonce', ARGV[n + 9], 'open', '1', 'task', ARGV[6],
    'at', whole(now))
  redis.call('PERSIST', key)
  -- No decision is about it yet: its nonce is new.
  seen[id] = { 'open', tonumber(deadline), false }
  redis.call('ZADD', KEYS[2], deadline, id)
  redis.call('PUBLISH', NEW_REQUEST_CHANNEL, id)
end
for n = 10, #ARGV, FIELDS do
  add_request(n)
  if not is_listed[ARGV[n]] then
    requested = requested .. ' ' .. ARGV[n]
    is_listed[ARGV[n]] = true
  end
end
for id in string.gmatch(ARGV[7], '%S+') do
  if status(id, now) == 'open' then
    redis.call('HSET', REQUEST .. id, 'open', '0')
    redis.call('ZREM', KEYS[2], id)
  end
end

local list = table.concat(waits, ' ')
local sleeps = tonumber(ARGV[8])
local alarm = sleeps > 0 and whole(now + sleeps) or '0'
local is_ready = #waits > 0 and due_in(list, alarm, now) == 0
redis.call('HSET', KEYS[1], 'v', '1', 'number', ARGV[1], 'waits', list, 'asked', requested,
  'alarm', alarm, 'digest', ARGV[9],
  'message', ARGV[4], 'queue', ARGV[5],
  'holder', is_ready and holder or '', 'until', is_ready and whole(now + lease) or '0')
if is_ready then
  -- No other process sends a resume message: if this run dies, a sweeper sends it.
  redis.call('ZADD', KEYS[3], whole(now + lease), cjson.encode({ ARGV[6], ARGV[1], ARGV[5] }))
  return add_outcomes({ 'ready' }, list, now)
end
if alarm ~= '0' then
  -- The wake message may be late or lost: a sweeper resumes the task after its sleep. A sweep takes entries
  -- that are a second old.
  redis.call('ZADD', KEYS[3], whole(now + sleeps - 999), cjson.encode({ ARGV[6], ARGV[1], ARGV[5] }))
end
return { 'waiting', whole(due_in(list, alarm, now)) }
