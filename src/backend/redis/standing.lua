-- How questions stand. Shared by the scripts that begin with it.
local ASK, DECISION = 'cs:ask:{cs}:', 'cs:dec:{cs}:'
local ASKED = 'cs:asked'

local function now_in_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

-- Whether what was said is about this request, and not about an earlier one with the same id: `Ballot::of`
-- of lifecycle/vote.rs. Of each: digest, nonce, when it was asked or decided.
local function is_about(ask, said)
  if said[1] ~= ask[1] then
    return false
  elseif ask[2] and not said[2] then
    return said[3] and tonumber(said[3]) >= tonumber(ask[3] or '0')
  end
  return said[2] == ask[2]
end

-- Returns 'unknown', a choice, 'expired' or 'open'; then when that was decided, or the deadline; then
-- whether what was said is about this request.
local function standing(id, now)
  local ask = redis.call('HMGET', ASK .. id, 'digest', 'nonce', 'at', 'deadline', 'open')
  if not ask[1] then
    return 'unknown', now, false
  end
  local said = redis.call('HMGET', DECISION .. id, 'digest', 'nonce', 'at', 'choice', 'deadline')
  local is_same = is_about(ask, said)
  if is_same and said[4] then
    return said[4], tonumber(said[3]), is_same
  end
  if ask[5] ~= '1' then
    return 'withdraw', now, is_same
  end
  local extended = is_same and tonumber(said[5] or '0') or 0
  -- Asked anew since, it has its own time.
  local deadline = extended > tonumber(ask[3] or '0') and extended or tonumber(ask[4])
  if now > deadline then
    return 'expired', deadline, is_same
  end
  return 'open', deadline, is_same
end

-- Whether this person is named as an approver, and whether it is the requester. Of the request: requester,
-- approvers.
local function roles(requester, approvers, by)
  local is_named = approvers == '' or string.find(approvers, '\n' .. by .. '\n', 1, true)
  return is_named, requester ~= '' and requester == by
end

-- Keeps votes, extensions and the decision until the deadline, and `seconds` longer.
local function keep(id, deadline, now, seconds)
  local left = math.max(deadline - now, 0)
  redis.call('EXPIRE', DECISION .. id, whole(math.ceil(left / 1000) + tonumber(seconds)))
end

-- What is written down is about this request from now on: what was said to another one is forgotten.
local function turn_to(id)
  local ask = redis.call('HMGET', ASK .. id, 'digest', 'nonce')
  redis.call('DEL', DECISION .. id)
  redis.call('HSET', DECISION .. id, 'v', '1', 'digest', ask[1])
  if ask[2] then
    redis.call('HSET', DECISION .. id, 'nonce', ask[2])
  end
end

-- What became of these questions, as far as they are not open: five texts for each.
local function add_rulings(answer, ids, now)
  for id in string.gmatch(ids, '%S+') do
    local state, at, is_same = standing(id, now)
    if state ~= 'open' and state ~= 'unknown' then
      local document = is_same and redis.call('HGET', DECISION .. id, 'document')
      local digest = redis.call('HGET', ASK .. id, 'digest')
      local is_decided = state ~= 'expired' and document
      for _, text in ipairs({ id, digest, state, whole(at), is_decided and document or '' }) do
        answer[#answer + 1] = text
      end
    end
  end
  return answer
end

-- Milliseconds until the first of these, or the alarm, is due; 0: one is. An alarm of '0' is none.
local function due_in(ids, alarm, now)
  local nearest = alarm ~= '0' and tonumber(alarm) or nil
  for id in string.gmatch(ids, '%S+') do
    local state, deadline = standing(id, now)
    if state ~= 'open' then
      return 0
    end
    nearest = math.min(nearest or deadline, deadline)
  end
  return nearest and math.max(nearest - now + 1, 0) or 0
end
