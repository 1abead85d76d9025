-- Decides what to do with a message of a task that may be suspended, or with a run that is about to
-- suspend for the first time: `claim` and `begin` of lifecycle/suspension.rs.
-- KEYS[1] the suspension record
-- KEYS[2] the index of open requests
-- KEYS[3] the outbox
-- KEYS[4] the task's result
-- ARGV    kind of suspend header or 'begin', its number or 0, holder, lease in ms, longest wait in ms,
--         digest of the task ('': the message does not carry it), 1 if a run that begins starts anew
-- Returns the action and a number; for a claim then the stored message, the result if it is final, and the
-- outcomes of the task's requests. For 'occupied' the message of the suspended task.
local MAX_AHEAD_DELAY, MAX_NUMBER_JUMP = 1000, 2 ^ 20
local kind, number, holder = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local lease, recheck = tonumber(ARGV[4]), tonumber(ARGV[5])
local digest, starts_anew = ARGV[6], ARGV[7] == '1'
local now = now_in_ms()

local function claim(waits, alarm)
  redis.call('HSET', KEYS[1], 'v', '1', 'number', ARGV[2], 'holder', holder,
    'until', whole(now + lease), 'waits', waits, 'alarm', alarm)
end

-- Returns the result of the task; '' if there is none, or if it is known not to be final.
local function final_result()
  local stored = redis.pcall('GET', KEYS[4])
  if type(stored) ~= 'string' then
    return ''
  end
  local status = string.match(stored, '^{%s*"status"%s*:%s*"([^"\\]*)"')
  local is_final = status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED'
  return (is_final or not status) and stored or ''
end

local function create(result_number)
  claim('', '0')
  if digest ~= '' then
    redis.call('HSET', KEYS[1], 'digest', digest)
  end
  return { 'claimed', result_number, '', final_result() }
end

local suspension = redis.call('HMGET', KEYS[1], 'number', 'waits', 'holder', 'until', 'ended', 'v', 'alarm',
  'digest', 'asked', 'message', 'queue')
if not suspension[1] then
  if kind == 'wake' then
    return { 'lost', '0' }
  elseif kind == 'resume' then
    return { 'ack', '0' }
  elseif number == 0 and kind ~= 'begin' then
    return { 'unclaimed', '0' }
  end
  return create(ARGV[2])
end
if suspension[6] ~= '1' then
  return { 'newer', '0' }
end
local stored, waits = tonumber(suspension[1]), suspension[2] or ''
local is_known = digest ~= '' and suspension[8]
local is_another = is_known and suspension[8] ~= digest
if kind == 'begin' and suspension[5] == '1' and (is_another or (is_known and starts_anew)) then
  redis.call('DEL', KEYS[1])
  return create(stored + 1 < MAX_NUMBER_JUMP and whole(stored + 1) or '0')
end
local is_first = number == 0 and (kind == 'original' or kind == 'begin')
if is_another then
  if not is_first then
    return { 'ack', '0' }
  elseif suspension[5] == '1' then
    return { 'unclaimed', '0' }
  end
  return { 'occupied', '0', suspension[10] or '' }
end
if suspension[5] == '1' and is_known and is_first and kind == 'original' then
  return { 'ended', '0' }
end
local is_ahead = number > stored
local is_forged = is_ahead and (kind == 'resume' or number - stored > MAX_NUMBER_JUMP)
if suspension[5] == '1' or number < stored or is_forged then
  return { 'ack', '0' }
end
local left = tonumber(suspension[4] or '0') - now
if (suspension[3] or '') ~= '' and suspension[3] ~= holder and left > 0 then
  return { 'postpone', whole(is_ahead and math.min(left, MAX_AHEAD_DELAY) or left) }
end
local alarm = suspension[7] or '0'
local due = due_in(waits, alarm, now)
if due > 0 and kind == 'resume' then
  return { 'ack', '0' }
end
if due > 0 and kind == 'wake' and not is_ahead then
  return { 'postpone', whole(math.min(due, recheck)) }
end
if alarm ~= '0' then
  -- A message has arrived for this sleep, or has ended it early: the sweeper need not send one.
  local id = string.sub(KEYS[1], #'cs:park:{cs}:' + 1)
  redis.call('ZREM', KEYS[3], cjson.encode({ id, suspension[1], suspension[11] or '' }))
end
if is_ahead then
  claim('', '0')
else
  claim(waits, alarm)
end
local claimed = { 'claimed', ARGV[2], suspension[10] or '', final_result() }
local result = add_outcomes(claimed, suspension[9] or '', now)
for n = 5, #result, 5 do
  redis.call('ZREM', KEYS[2], result[n])
end
return result
